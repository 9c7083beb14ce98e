"""Two stages: the vision tower learns to name what it sees, then everything learns to answer."""

import copy
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from recipes.demo_vlm import forward
from recipes.demo_vlm.batches import GRIDS, SLOTS, Batch, SceneBatches, load_batches
from recipes.demo_vlm.build import BLOCKS, build_model, build_processor
from recipes.demo_vlm.losses import CellHead, question_loss, right_answers, slot_weights
from recipes.demo_vlm.muon import Muon
from recipes.demo_vlm.state import collect, read_state, restore, write_state
from torch import Tensor, nn

SAVES = 5  # checkpoints and states in stage 2, evenly spaced in time


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
        few_tiles: chance of each of `GRIDS` in the second half of a step.
        few_blocks: chance of each smaller set of blocks there.
        few_experts: chance of each smaller number of experts there.
        log_every: steps between two lines of the curve.
    """

    seed: int = 2
    device: str = "cuda"
    seconds: tuple[float, float] = (40.0, 400.0)
    batch: int = 128
    workers: int = 4
    learning_rate: float = 2e-3
    few_tiles: tuple[float, ...] = (0.62, 0.10, 0.12, 0.16)
    few_blocks: float = 0.04
    few_experts: float = 0.05
    log_every: int = 50


TOY = Plan(device="cpu", seconds=(3.0, 12.0), batch=4, workers=1, log_every=2)


def saved_plan(state: Path) -> Plan:
    """The plan of the run that saved a state."""
    stored = read_state(state)[1]["plan"]
    return Plan(**{name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()})


@dataclass(kw_only=True)
class Clock:
    """Where a stage stands: steps taken and seconds trained, in this piece and the ones before."""

    step: int = 0
    seconds: float = 0.0


class Trainer:
    """A training run: the model, its helpers and the curve."""

    def __init__(self, plan: Plan, out: Path, *, pause_after_s: float = math.inf, resume: Path | None = None) -> None:
        """Builds the model; with `resume` it goes on in stage 2 from a saved state.

        Args:
            plan: what to do.
            out: folder of the checkpoint, the curve and the state.
            pause_after_s: stage 2 stops that long after this call and can be resumed from `out / "state"`.
            resume: the folder of a state, of a run with this plan.
        """
        self.began = perf_counter()
        self.plan = plan
        self.out = out
        self.pause_after_s = pause_after_s
        self.device = torch.device(plan.device)
        torch.manual_seed(plan.seed)
        torch.set_float32_matmul_precision("high")
        self.model = build_model().to(self.device)
        hidden = self.model.config.text_config.hidden_size
        self.heads = nn.ModuleList([CellHead(hidden), CellHead(hidden)]).to(self.device)
        self.knobs = np.random.default_rng([plan.seed, 7])
        self.weights = {
            reasoning: torch.tensor(slot_weights(reasoning=reasoning), device=self.device)
            for reasoning in (True, False)
        }
        self.compiled: dict[str, Any] = {}
        if self.device.type == "cuda":
            torch._dynamo.config.recompile_limit = 64
            self.compiled = {
                name: torch.compile(getattr(forward, name), dynamic=False) for name in ("vision_layer", "text_layer")
            }
        self.clocks = {1: Clock(), 2: Clock()}
        self.optimizers = {stage: self._optimizers(stage) for stage in self.clocks}
        self.piece = 0
        self.resumed = resume is not None
        if resume is not None:
            self._restore(resume)
        out.mkdir(parents=True, exist_ok=True)
        self.curve = out / "curve.jsonl"
        if not self.resumed:
            self.curve.unlink(missing_ok=True)
        self.log({"plan": asdict(plan), "torch": torch.__version__, "piece": self.piece, **asdict(self.clocks[2])})

    def run(self) -> bool:
        """Trains both stages, or what is left of the second; true if they are finished and the checkpoint saved."""
        first = None if self.resumed else load_batches(self._stream(1, grids=GRIDS), self.plan.workers)
        second = load_batches(self._stream(2, grids=GRIDS[:1], chances=self.plan.few_tiles), self.plan.workers)
        if first is not None:
            self._train_stage(1, first, self._see_backward, floor=0.3)
            del first  # ends its workers
        finished = self._train_stage(2, second, self._answer_backward, floor=0.02)
        self.save()
        return finished

    def save(self) -> None:
        """Writes the weights as float16 and the processor in the library's own format, and the state beside them."""
        copy.deepcopy(self.model).half().save_pretrained(self.out / "checkpoint")
        build_processor().save_pretrained(self.out / "checkpoint")
        numbers = {
            "plan": asdict(self.plan),
            "piece": self.piece,
            "knobs": self.knobs.bit_generator.state,
            **asdict(self.clocks[2]),
        }
        write_state(self.out / "state", collect(self._modules(), self.optimizers[2]), numbers)

    def log(self, line: dict[str, Any]) -> None:
        """Adds a line to the curve."""
        with self.curve.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _modules(self) -> dict[str, nn.Module]:
        return {"model": self.model, "heads": self.heads}

    def _restore(self, folder: Path) -> None:
        tensors, numbers = read_state(folder)
        restore(tensors, self._modules(), self.optimizers[2])
        self.knobs.bit_generator.state = numbers["knobs"]
        self.piece = numbers["piece"] + 1  # names new streams of scenes, so that no scene is shown again
        self.clocks[2] = Clock(step=numbers["step"], seconds=numbers["seconds"])

    def _stream(self, stage: int, **grids: tuple[float, ...]) -> SceneBatches:
        key = (self.plan.seed, stage, self.piece)
        return SceneBatches(key=key, split="train", size=self.plan.batch, **grids)

    def _train_stage(
        self,
        stage: int,
        batches: Iterator[Batch],
        backward: Callable[[Batch, float], dict[str, Tensor]],
        floor: float,
    ) -> bool:
        """Steps until the stage's time is up; the learning rate follows the clock, so every machine ends it.

        Returns:
            False if the piece had to end before.
        """
        self._warm_up(stage, batches, backward)
        clock, length, window = self.clocks[stage], self.plan.seconds[stage - 1], Counter()
        start, logged = perf_counter() - clock.seconds, clock.step
        saved = self._saves_due(clock) if stage == 2 else SAVES
        while clock.seconds < length:
            progress = clock.seconds / length
            rate = self.plan.learning_rate * schedule(clock.step, progress, floor)
            window.update(backward(self._to_device(next(batches)), progress))
            self._step(self.optimizers[stage], rate)
            clock.step += 1
            if clock.step % self.plan.log_every == 0:
                self._log_window(stage, rate, window, clock.step - logged)
                logged = clock.step
                window.clear()
            clock.seconds = perf_counter() - start
            if stage == 2 and perf_counter() - self.began > self.pause_after_s:
                return False
            if stage == 2 and self._saves_due(clock) > saved:
                saved = self._saves_due(clock)
                self.save()
        return True

    def _saves_due(self, clock: Clock) -> int:
        return min(int(SAVES * clock.seconds / self.plan.seconds[1]), SAVES - 1)

    def _log_window(self, stage: int, rate: float, window: Counter[str], steps: int) -> None:
        clock = self.clocks[stage]
        means = {name: round(float(value) / steps, 4) for name, value in window.items()}
        self.log({"stage": stage, "step": clock.step, "s": round(clock.seconds, 1), "rate": rate, **means})

    def _warm_up(self, stage: int, batches: Iterator[Batch], backward: Callable[[Batch, float], object]) -> None:
        """Compiles every shape before the clock starts; leaves weights and gradients as they were."""
        start = perf_counter()
        missing = set(GRIDS) if stage == 2 else {0}
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
        """Stage 2: the scenes at the full setting and, where one is drawn, at a cheaper one.

        A path with fewer blocks or a single expert is taught perception alone (`slot_weights` says why).
        """
        full, extra = max(batch.tiles), min(batch.tiles)
        losses = self._half_backward(batch, full, BLOCKS, forward.TOP_KS[0], progress)
        blocks = self._draw(forward.KEPT_BLOCKS, self.plan.few_blocks)
        top_k = self._draw(forward.TOP_KS, self.plan.few_experts)
        if (extra, blocks, top_k) != (GRIDS[0], BLOCKS, forward.TOP_KS[0]):
            self._half_backward(batch, extra, blocks, top_k, progress)
        return losses

    def _draw(self, values: Any, chance: float) -> int:  # noqa: ANN401 - a tuple or a dict of integers
        """The first value, or one of the others with the given chance each."""
        first, *others = values
        return int(self.knobs.choice([first, *others], p=[1 - chance * len(others), *[chance] * len(others)]))

    def _half_backward(self, batch: Batch, grid: int, blocks: int, top_k: int, progress: float) -> dict[str, Tensor]:
        kept = forward.KEPT_BLOCKS[blocks]
        weights = self.weights[blocks == BLOCKS and top_k > 1]
        with self._autocast():
            image = forward.see(self.model, batch.tiles[grid], self.compiled.get("vision_layer"))
            out = forward.read(
                self.model, image, batch.tokens, kept=kept, top_k=top_k, layer_fn=self.compiled.get("text_layer")
            )
            answers = question_loss(out.logits, batch, weights)
            cells = self.heads[0].loss(image, batch.cells, grid)
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
