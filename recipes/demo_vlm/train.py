"""Two stages: the vision tower learns to name what it sees, then everything learns to answer."""

import copy
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from recipes.demo_vlm import forward
from recipes.demo_vlm.batches import GRIDS, SLOTS, Batch, SceneBatches, load_batches
from recipes.demo_vlm.build import build_model
from recipes.demo_vlm.losses import CellHead, question_loss, right_answers
from recipes.demo_vlm.muon import Muon
from torch import Tensor, nn
from transformers import InternVLForConditionalGeneration


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that can be chosen about a training run; the defaults made the shipped checkpoint.

    Attributes:
        seed: of the weights, the scenes and the knobs.
        device: where it trains.
        seconds: length of the stages, compilation not counted.
        batch: scenes per step.
        workers: processes that draw scenes.
        learning_rate: the highest, for both optimizers.
        few_blocks: chance of each smaller set of blocks in the second half of a step.
        few_experts: chance of each smaller number of experts, likewise.
        extra_grids: the second half's number of tiles is drawn from these.
        log_every: steps between two lines of the curve.
    """

    seed: int = 0
    device: str = "cuda"
    seconds: tuple[float, float] = (40.0, 330.0)
    batch: int = 128
    workers: int = 15
    learning_rate: float = 2e-3
    few_blocks: float = 0.03
    few_experts: float = 0.03
    extra_grids: tuple[int, ...] = (4, 3, 3, 2, 2, 1, 1)
    log_every: int = 50


TOY = Plan(device="cpu", seconds=(3.0, 12.0), batch=4, workers=1, log_every=2)


class Trainer:
    """A training run: the model, its helpers and the curve."""

    def __init__(self, plan: Plan, out: Path) -> None:
        self.plan = plan
        self.out = out
        self.device = torch.device(plan.device)
        torch.manual_seed(plan.seed)
        torch.set_float32_matmul_precision("high")
        self.model = build_model().to(self.device)
        hidden = self.model.config.text_config.hidden_size
        self.heads = nn.ModuleList([CellHead(hidden), CellHead(hidden)]).to(self.device)
        self.knobs = np.random.default_rng([plan.seed, 7])
        self.compiled: dict[str, Any] = {}
        if self.device.type == "cuda":
            torch._dynamo.config.recompile_limit = 64
            self.compiled = {
                name: torch.compile(getattr(forward, name), dynamic=False) for name in ("vision_layer", "text_layer")
            }
        out.mkdir(parents=True, exist_ok=True)
        self.curve = (out / "curve.jsonl").open("w")
        self.log({"plan": asdict(plan), "torch": torch.__version__})

    def run(self) -> InternVLForConditionalGeneration:
        """Trains both stages and saves the checkpoint."""
        loaders = [
            load_batches(batches, self.plan.workers)
            for batches in (
                self._stream(1, grids=GRIDS),
                self._stream(2, grids=GRIDS[:1], extra_grids=self.plan.extra_grids),
            )
        ]
        self._train_stage(1, loaders[0], floor=0.3)
        self._train_stage(2, loaders[1], floor=0.02)
        self.save()
        return self.model

    def save(self) -> None:
        """Writes the weights as float16 in the library's own format."""
        copy.deepcopy(self.model).half().save_pretrained(self.out / "checkpoint")

    def log(self, line: dict[str, Any]) -> None:
        """Adds a line to the curve."""
        self.curve.write(json.dumps(line) + "\n")
        self.curve.flush()

    def _stream(self, stage: int, **grids: tuple[int, ...]) -> SceneBatches:
        return SceneBatches(key=(self.plan.seed, stage), split="train", size=self.plan.batch, **grids)

    def _train_stage(self, stage: int, batches: Iterator[Batch], floor: float) -> None:
        """Steps until the stage's time is up; the learning rate follows the clock, so every machine ends it."""
        backward = self._see_backward if stage == 1 else self._answer_backward
        optimizers = self._optimizers(stage)
        self._warm_up(stage, batches, backward)
        seconds, step, saved, window = self.plan.seconds[stage - 1], 0, False, Counter()
        start = perf_counter()
        while (progress := (perf_counter() - start) / seconds) < 1:
            rate = self.plan.learning_rate * schedule(step, progress, floor)
            window.update(backward(self._to_device(next(batches)), progress))
            self._step(optimizers, rate)
            step += 1
            if step % self.plan.log_every == 0:
                line = {name: round(float(value) / self.plan.log_every, 4) for name, value in window.items()}
                self.log({"stage": stage, "step": step, "s": round(progress * seconds, 1), "rate": rate, **line})
                window.clear()
            if stage == 2 and progress > 0.6 and not saved:
                self.save()
                saved = True

    def _warm_up(self, stage: int, batches: Iterator[Batch], backward: Any) -> None:  # noqa: ANN401
        """Compiles every shape before the clock starts; leaves weights and gradients as they were."""
        start = perf_counter()
        missing = set(self.plan.extra_grids) if stage == 2 else {0}
        while missing:
            batch = next(batches)
            if min(batch.tiles) in missing or stage == 1:
                backward(self._to_device(batch), 0.0)
                missing.discard(min(batch.tiles) if stage == 2 else 0)
        self.model.zero_grad()
        self.heads.zero_grad()
        self.log({"stage": stage, "compiled_s": round(perf_counter() - start, 1)})

    def _optimizers(self, stage: int) -> list[torch.optim.Optimizer]:
        matrices, others = [], list(self.heads.parameters())
        for name, weight in self.model.named_parameters():
            if stage == 1 and "language_model" in name:
                continue
            matrix = weight.ndim >= 2 and (".encoder.layer." in name or ".layers." in name) and ".gate." not in name
            (matrices if matrix else others).append(weight)
        adamw = torch.optim.AdamW(
            others, lr=0.0, betas=(0.9, 0.95), weight_decay=0.05, fused=self.device.type == "cuda"
        )
        return [Muon(matrices, lr=0.0, weight_decay=0.05), adamw]

    def _step(self, optimizers: list[torch.optim.Optimizer], rate: float) -> None:
        weights = [w for optimizer in optimizers for group in optimizer.param_groups for w in group["params"]]
        nn.utils.clip_grad_norm_(weights, 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()

    def _to_device(self, batch: Batch) -> Batch:
        def move(tensor: Tensor) -> Tensor:
            return tensor.to(self.device, non_blocking=True)

        tiles = {grid: move(levels) for grid, levels in batch.tiles.items()}
        return Batch(tiles, move(batch.cells), move(batch.tokens), move(batch.answered))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def _see_backward(self, batch: Batch, _progress: float) -> dict[str, Tensor]:
        """Stage 1: the first head on the image tokens of every grid."""
        losses = {}
        for grid in GRIDS:
            with self._autocast():
                image = forward.see(self.model, batch.tiles[grid], self.compiled.get("vision_layer"))
                loss = self.heads[0].loss(image, batch.cells, grid)
            loss.backward()
            losses[f"cells_{grid * grid}"] = loss.detach()
        return losses

    def _answer_backward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Stage 2: the same scenes at the full setting and at a random one."""
        full, extra = max(batch.tiles), min(batch.tiles)
        losses = self._half_backward(batch, full, forward.KEPT_BLOCKS[8], forward.TOP_KS[0], progress)
        blocks = self._draw(forward.KEPT_BLOCKS, self.plan.few_blocks)
        top_k = self._draw(forward.TOP_KS, self.plan.few_experts)
        self._half_backward(batch, extra, forward.KEPT_BLOCKS[blocks], top_k, progress)
        return losses

    def _draw(self, values: Any, chance: float) -> int:  # noqa: ANN401 - a tuple or a dict of integers
        """The first value, or one of the others with the given chance each."""
        first, *others = values
        return int(self.knobs.choice([first, *others], p=[1 - chance * len(others), *[chance] * len(others)]))

    def _half_backward(
        self, batch: Batch, grid: int, kept: tuple[int, ...], top_k: int, progress: float
    ) -> dict[str, Tensor]:
        with self._autocast():
            image = forward.see(self.model, batch.tiles[grid], self.compiled.get("vision_layer"))
            out = forward.read(
                self.model, image, batch.tokens, kept=kept, top_k=top_k, layer_fn=self.compiled.get("text_layer")
            )
            answers = question_loss(out.logits, batch)
            cells = self.heads[0].loss(image, batch.cells, grid)
            early = cells.new_zeros(())
            if out.early is not None:
                early = self.heads[1].loss(out.early, batch.cells, grid)
            router = 0.01 * out.router[0] + 0.05 * out.router[1]
            loss = answers + max(0.3, 1 - 2 * progress) * cells + 0.3 * early + router
        loss.backward()
        right = right_answers(out.logits.detach(), batch).float().mean(0)
        by_kind = {f"right_{kind}": right[SLOTS.index(kind)] for kind in SLOTS}
        return {"answers": answers.detach(), "cells": cells.detach(), "early": early.detach(), **by_kind}


def schedule(step: int, progress: float, floor: float, warm_up: int = 150) -> float:
    """Share of the highest learning rate: a linear start in steps, then a cosine down to `floor` in time."""
    cosine = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    return min(1.0, (step + 1) / warm_up) * cosine
