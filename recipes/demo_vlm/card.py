"""The model card, written from what was measured: no number in it is typed by hand."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.demo_vlm.costs import cost_shares
from recipes.demo_vlm.gap import Gap, Measured, gap_lines, gaps, measured
from recipes.demo_vlm.table import FULL, Table, accuracies, accuracy_lines, mean_over_mix, read_table, shares
from recipes.demo_vlm.verdicts import accuracy_verdicts, knob_verdicts, verdicts

from chronostat.data.demo.questions import KINDS
from chronostat.data.demo.scans import scans_of
from chronostat.data.demo.scenes import DIGIT_SIZES_PX, SHAPE_RADII_PX
from chronostat.data.demo.task import SAMPLES_PER_SPLIT, UNSEEN_SUFFIX, UNSEEN_WORDING_SAMPLES
from chronostat.errors import DataError
from chronostat.models.identity import unlike
from chronostat.models.load import Vlm

TEMPLATE = Path(__file__).parent / "card.md"
_NEEDS = {
    "coarse": "a glance",
    "fine": "small print",
    "depth": "steps of reasoning over big things",
    "both": "steps of reasoning over small print",
}


@dataclass(frozen=True, kw_only=True)
class Seed:
    """One training run: its table on the test split and its curve."""

    name: str
    table: Table
    curve: list[dict[str, Any]]

    @property
    def plan(self) -> dict[str, Any]:
        """What was asked of the run."""
        return next(line["plan"] for line in self.curve if "plan" in line)


def read_seeds(folder: Path) -> list[Seed]:
    """All training runs of a folder, from `test-seed*.json` and `curve-seed*.jsonl`.

    Raises:
        DataError: there is no table, or a table has no curve.
    """
    tables = sorted(folder.glob("test-seed*.json"))
    if not tables:
        raise DataError(f"{folder} holds no test-seed*.json; measure them with: python -m recipes.demo_vlm table")
    return [
        Seed(name=path.stem.removeprefix("test-"), table=read_table(path), curve=_read_curve(path)) for path in tables
    ]


def _read_curve(table: Path) -> list[dict[str, Any]]:
    """The lines of the log of the run that a table belongs to."""
    path = table.with_name(f"{table.stem.replace('test-', 'curve-')}.jsonl")
    if not path.is_file():
        raise DataError(f"{table} has no curve beside it; put curve.jsonl of its training there as {path.name}")
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_card(out: Path, vlm: Vlm, seeds: Sequence[Seed], costs: dict[str, Any], tried: str) -> None:
    """Fills the template.

    Args:
        out: the card.
        vlm: the model that ships.
        seeds: all training runs; one of their tables is of the shipped model.
        costs: measured with the shipped model.
        tried: what was tried where a demand is not met; may be empty.

    Raises:
        DataError: tables or costs are of other weights than those that ship.
    """
    shipped = next((seed for seed in seeds if unlike(seed.table.page["fingerprint"], vlm.model) is None), None)
    if shipped is None or unlike(costs["fingerprint"], vlm.model) is not None:
        measured_on = ", ".join(f"{seed.name}: {seed.table.page['fingerprint']}" for seed in seeds)
        raise DataError(
            f"the shipped model is {vlm.fingerprint}, but the tables are of {measured_on} and the costs of "
            f"{costs['fingerprint']}; measure the shipped model with the verbs table and costs"
        )
    task = measured(shipped.table.rows, cost_shares(costs))
    found = gaps(task)
    text = TEMPLATE.read_text()
    for name, value in {
        **_model_metadata(vlm),
        **_data_metadata(),
        **_training_metadata(shipped),
        **_result_metadata(shipped, task, found, costs),
        "seeds": _markdown(_seed_lines(seeds, costs)),
        "tried": tried,
    }.items():
        text = text.replace(f"{{{{ {name} }}}}", str(value))
    out.write_text(re.sub("\n{3,}", "\n\n", text).rstrip() + "\n")


def _model_metadata(vlm: Vlm) -> dict[str, object]:
    text, vision = vlm.model.config.text_config, vlm.model.config.vision_config
    parameters = sum(weight.numel() for weight in vlm.model.parameters())
    return {
        "fingerprint": vlm.fingerprint,
        "parameters": f"{parameters:,}",
        "megabytes": f"{2 * parameters / 1e6:.1f}",
        "words": text.vocab_size,
        "blocks": text.num_hidden_layers,
        "hidden": text.hidden_size,
        "experts": text.num_experts,
        "top_k": text.num_experts_per_tok,
        "vision_layers": vision.num_hidden_layers,
        "vision_hidden": vision.hidden_size,
    }


def _data_metadata() -> dict[str, object]:
    lines = [["kind", "share of the mix", "needs", "for example"]]
    lines += [
        [name, f"{kind.share:.0%}", _NEEDS[kind.needs], kind.wordings[0]] for name, kind in KINDS.items() if kind.share
    ]
    return {
        "kinds": _markdown(lines),
        "train_scans": len(scans_of("train")),
        "validation_scans": len(scans_of("validation")),
        "test_scans": len(scans_of("test")),
        "digit_px": " or ".join(f"{size:g}" for size in DIGIT_SIZES_PX),
        "radius_px": " or ".join(f"{size:g}" for size in SHAPE_RADII_PX.values()),
        "samples": f"{SAMPLES_PER_SPLIT:,}",
        "unseen_samples": f"{UNSEEN_WORDING_SAMPLES:,}",
    }


def _training_metadata(seed: Seed) -> dict[str, object]:
    plan = seed.plan
    last = [line for line in seed.curve if line.get("stage") == 2 and "step" in line][-1]
    first = [line for line in seed.curve if line.get("stage") == 1 and "step" in line][-1]
    return {
        "seed": plan["seed"],
        "stage_1_s": f"{plan['seconds'][0]:g}",
        "stage_2_s": f"{plan['seconds'][1]:g}",
        "stage_1_steps": first["step"],
        "stage_2_steps": last["step"],
        "batch": plan["batch"],
        "learning_rate": f"{plan['learning_rate']:g}",
        "few_tiles": ", ".join(f"{chance:.0%}" for chance in plan["few_tiles"]),
        "few_blocks": f"{plan['few_blocks']:.0%}",
        "few_experts": f"{plan['few_experts']:.0%}",
        "training_torch": next(line["torch"] for line in seed.curve if "torch" in line),
        "pieces": max(line.get("piece", 0) for line in seed.curve) + 1,
    }


def _result_metadata(seed: Seed, task: Measured, found: Sequence[Gap], costs: dict[str, Any]) -> dict[str, object]:
    page, conditions = seed.table.page, costs["conditions"]
    return {
        "per_kind": f"{page['per_kind']:,}",
        "standard_error": f"{50 / page['per_kind'] ** 0.5:.1f}",  # of a share of one half, in points
        "table_device": page["device"],
        "table_versions": f"torch {page['torch']}, transformers {page['transformers']}",
        "accuracy": _markdown(accuracy_lines(seed.table.rows)),
        "unseen": _markdown(_unseen_lines(seed.table)),
        "gaps": _markdown(gap_lines(found)),
        "verdicts": _markdown(
            [
                ["demand", "", "found"],
                *([v.demand, "met" if v.met else "**not met**", v.found] for v in verdicts(task, found)),
            ]
        ),
        "costs": _markdown(_cost_lines(costs)),
        "cost_samples": costs["samples"],
        "cost_conditions": f"{conditions['cpu']}, {conditions['threads']} thread(s), torch {conditions['torch']}, "
        f"transformers {conditions['transformers']}, {conditions['dtype']}",
    }


def _unseen_lines(table: Table) -> list[list[str]]:
    """Full-setting accuracy of each kind in seen and in unseen words."""
    full = accuracies(table.rows)[FULL]
    lines = [["kind", "seen wordings", "unseen wording", "which is"]]
    for kind in shares():
        unseen = f"{full[kind + UNSEEN_SUFFIX]:.3f}"
        lines.append([kind, f"{full[kind]:.3f}", unseen, KINDS[kind].unseen_wording])
    means = (mean_over_mix(full, suffix) for suffix in ("", UNSEEN_SUFFIX))
    return [*lines, ["mean over the mix", *(f"{mean:.3f}" for mean in means), ""]]


def _cost_lines(costs: dict[str, Any]) -> list[list[str]]:
    lines = [["image tokens", "top_k", "blocks left out", "prefill, ms", "share of full", "95 % interval"]]
    for row in costs["settings"]:
        skipped = ", ".join(map(str, row["block_skip"])) or "none"
        interval = f"{row['share_low']:.3f} to {row['share_high']:.3f}"
        times = [f"{row['prefill_ms']:.1f}", f"{row['share']:.3f}", interval]
        lines.append([str(row["vision_tokens"]), str(row["moe_topk"]), skipped, *times])
    return lines


def _seed_lines(seeds: Sequence[Seed], costs: dict[str, Any]) -> list[list[str]]:
    """What each seed reaches on the demands that depend on accuracy alone."""
    by_seed = []
    for seed in seeds:
        task = measured(seed.table.rows, cost_shares(costs))
        by_seed.append([*accuracy_verdicts(task), *knob_verdicts(task)])
    rows = zip(*by_seed, strict=True)
    lines = [["demand", *(seed.name for seed in seeds)]]
    return lines + [[same[0].demand, *(f"{'' if v.met else '**not met** '}{v.found}" for v in same)] for same in rows]


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table; the first line is its head."""
    head, *body = lines
    rule = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *body))
