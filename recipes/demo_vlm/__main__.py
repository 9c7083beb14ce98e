"""How the bundled model is trained, measured and described: `python -m recipes.demo_vlm VERB`."""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from recipes.demo_vlm.gap import gaps, measured, print_gaps
from recipes.demo_vlm.table import Table, print_accuracies, read_table, write_table

from chronostat.errors import ChronostatError, DataError

if TYPE_CHECKING:  # the help needs none of them
    from chronostat.models.load import Vlm
    from chronostat.records import Setting
    from chronostat.records.choices import DeviceName

HERE = Path(__file__).parent
RESULTS = HERE / "results"
KEPT, KEPT_COSTS = RESULTS / "keep-seed2.json", RESULTS / "keep-costs.json"
ROOT = HERE.parents[1]
CARD = ROOT / "src" / "chronostat" / "assets" / "demo_vlm" / "README.md"
PICTURE = ROOT / "docs" / "images" / "scenes.png"


def main() -> None:
    """Parses the command line and runs one verb."""
    arguments = _parser().parse_args()
    verbs = {
        "train": _train,
        "table": _table,
        "costs": _costs,
        "keep": _keep,
        "keep-costs": _keep_costs,
        "gap": _gap,
        "card": _card,
        "picture": _picture,
    }
    try:
        verbs[arguments.verb](arguments)
    except ChronostatError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m recipes.demo_vlm", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    _add_train(verbs.add_parser("train", help="train from nothing, then count answers on the validation split"))

    table = verbs.add_parser("table", help="measure all kinds under all settings, through generate(); resumable")
    _add_model(table)
    table.add_argument("--out", type=Path, default=RESULTS / "test-seed2.json", help="goes on if it was begun")
    table.add_argument("--split", choices=("validation", "test"), default="test")
    table.add_argument("--per-kind", type=int, default=1_000, help="questions of each kind")
    table.add_argument("--batch", type=int, default=500, help="questions in one generate() call")
    table.add_argument("--workers", type=int, default=2, help="processes that preprocess")
    table.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    table.add_argument("--single-knobs", action="store_true", help="only settings with at most one knob turned")
    table.add_argument("--experts", choices=("grouped_mm", "eager"), help="how the library computes experts")
    table.add_argument("--seconds", type=float, default=math.inf, help="no setting begins after this time")

    costs = verbs.add_parser("costs", help="measure the prefill of every setting on this CPU, with one thread")
    _add_model(costs)
    costs.add_argument("--out", type=Path, default=RESULTS / "costs.json")
    costs.add_argument("--samples", type=int, default=40, help="of the validation split")

    keep = verbs.add_parser("keep", help="measure image_keep at the numbers of tokens that tiles give; resumable")
    _add_model(keep)
    keep.add_argument("--out", type=Path, default=KEPT, help="goes on if it was begun")
    keep.add_argument("--split", choices=("validation", "test"), default="test")
    keep.add_argument("--per-kind", type=int, default=1_000, help="questions of each kind")
    keep.add_argument("--batch", type=int, default=500, help="questions in one generate() call")
    keep.add_argument("--workers", type=int, default=2, help="processes that preprocess")
    keep.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    keep.add_argument("--seconds", type=float, default=math.inf, help="no setting begins after this time")

    kept_costs = verbs.add_parser("keep-costs", help="measure the prefill of those on this CPU, with one thread")
    _add_model(kept_costs)
    kept_costs.add_argument("--out", type=Path, default=KEPT_COSTS)
    kept_costs.add_argument("--samples", type=int, default=40, help="of the validation split")

    gap = verbs.add_parser("gap", help="print what is worth controlling, and which demands are met")
    gap.add_argument("--table", type=Path, default=RESULTS / "test-seed2.json")
    gap.add_argument("--costs", type=Path, default=RESULTS / "costs.json")
    gap.add_argument("--kept", type=Path, default=KEPT, help="what keep measured, if it is there")
    gap.add_argument("--kept-costs", type=Path, default=KEPT_COSTS)

    card = verbs.add_parser("card", help="write the model card from test-seed*.json, curve-seed*.jsonl and costs.json")
    _add_model(card)
    card.add_argument("--results", type=Path, default=RESULTS, help="folder of those files")
    card.add_argument("--out", type=Path, default=CARD)

    picture = verbs.add_parser("picture", help="draw four scenes with the cheapest setting that answers each")
    _add_model(picture)
    picture.add_argument("--costs", type=Path, default=RESULTS / "costs.json")
    picture.add_argument("--out", type=Path, default=PICTURE)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, default=None, help="a checkpoint folder; the bundled model if absent")


def _add_train(train: argparse.ArgumentParser) -> None:
    train.add_argument("--out", type=Path, required=True, help="folder of the checkpoint, the curve and the state")
    train.add_argument("--seed", type=int)
    train.add_argument("--toy", action="store_true", help="seconds on a CPU, to try the script")
    train.add_argument("--seconds", type=float, nargs=2, help="length of the two stages")
    train.add_argument("--batch", type=int, help="scenes per step")
    train.add_argument("--workers", type=int, help="processes that draw scenes")
    train.add_argument(
        "--pause-after", type=float, default=math.inf, help="seconds of this piece, compilation included"
    )
    train.add_argument("--resume", type=Path, help="the folder `state` of a paused run, whose plan goes on")
    train.add_argument("--scenes", type=int, default=2048, help="validation scenes of the count")
    train.add_argument("--count-seconds", type=float, default=45.0, help="the count stops growing then")


def _train(arguments: argparse.Namespace) -> None:
    from recipes.demo_vlm.evaluate import count_answers
    from recipes.demo_vlm.train import TOY, Plan, Trainer, saved_plan

    plan = saved_plan(arguments.resume) if arguments.resume else TOY if arguments.toy else Plan()
    asked = {name: getattr(arguments, name) for name in ("seed", "seconds", "batch", "workers")}
    plan = replace(plan, **{n: tuple(v) if n == "seconds" else v for n, v in asked.items() if v is not None})
    trainer = Trainer(plan, arguments.out, pause_after_s=arguments.pause_after, resume=arguments.resume)
    if not trainer.run():
        print(f"paused; go on with: train --out {arguments.out} --resume {arguments.out / 'state'}")
        return
    rows = count_answers(
        trainer.model.half().float(),  # as it is shipped
        split="validation",
        scenes=arguments.scenes,
        seconds=arguments.count_seconds,
        workers=plan.workers,
        batch=plan.batch,
    )
    page = {"split": "validation", "how": "counted with the packed forward of training, float32"}
    write_table(arguments.out / "validation.json", Table(page=page, rows=rows))
    print_accuracies(rows)


def _table(arguments: argparse.Namespace) -> None:
    from recipes.demo_vlm.answers import measure_table

    vlm = _loaded(arguments, arguments.device)
    if arguments.experts:
        vlm.model.set_experts_implementation(arguments.experts)
    table = measure_table(vlm, **_asked(arguments), single_knobs=arguments.single_knobs)
    print_accuracies(table.rows)


def _loaded(arguments: argparse.Namespace, device: "DeviceName") -> "Vlm":
    """The model in float32 on one thread: other cores preprocess, and costs are of one."""
    from chronostat.models.load import load_vlm

    torch.set_num_threads(1)
    return load_vlm(arguments.model, device=device, dtype="float32")


def _asked(arguments: argparse.Namespace) -> dict[str, Any]:
    """What tables of answers are asked for alike."""
    names = ("out", "split", "per_kind", "batch", "workers", "seconds")
    return {name: getattr(arguments, name) for name in names}


def _costs(arguments: argparse.Namespace) -> None:
    _measure_costs(arguments, settings=None)


def _measure_costs(arguments: argparse.Namespace, settings: "Sequence[Setting] | None") -> None:
    from recipes.demo_vlm.costs import measure_costs, write_costs

    from chronostat.data.demo import DemoTask

    samples = DemoTask().split("validation")[: arguments.samples]
    write_costs(arguments.out, measure_costs(_loaded(arguments, "cpu"), samples, settings))


def _keep(arguments: argparse.Namespace) -> None:
    from recipes.demo_vlm.keep import measure_kept, print_kept

    print_kept(measure_kept(_loaded(arguments, arguments.device), **_asked(arguments)).rows)


def _keep_costs(arguments: argparse.Namespace) -> None:
    from recipes.demo_vlm.keep import SETTINGS

    _measure_costs(arguments, SETTINGS)


def _gap(arguments: argparse.Namespace) -> None:
    from recipes.demo_vlm.costs import cost_shares, read_costs
    from recipes.demo_vlm.keep import print_kept
    from recipes.demo_vlm.verdicts import print_verdicts, verdicts

    table = read_table(arguments.table)
    print_accuracies(table.rows)
    costs = cost_shares(read_costs(arguments.costs))
    task = measured(table.rows, costs)
    found = gaps(task)
    print_gaps(found)
    print_verdicts(verdicts(task, found))
    if not arguments.kept.is_file():
        return
    kept = read_table(arguments.kept).rows
    if kept[0]["n"] != table.rows[0]["n"]:
        raise DataError(
            f"{arguments.kept} has {kept[0]['n']} questions of each kind, {arguments.table} {table.rows[0]['n']}; "
            "measure as many with keep --per-kind"
        )
    print("\nWith image_keep among the settings, at equal numbers of tokens in the decoder:")
    print_kept([*table.rows, *kept])
    print_gaps(gaps(measured([*table.rows, *kept], cost_shares(read_costs(arguments.kept_costs)) | costs)))


def _card(arguments: argparse.Namespace) -> None:
    from recipes.demo_vlm.card import read_seeds, write_card
    from recipes.demo_vlm.costs import read_costs

    from chronostat.models.load import load_vlm

    tried = arguments.results / "tried.md"
    write_card(
        arguments.out,
        load_vlm(arguments.model, device="cpu", dtype="float32"),
        read_seeds(arguments.results),
        read_costs(arguments.results / "costs.json"),
        tried.read_text() if tried.is_file() else "",
    )


def _picture(arguments: argparse.Namespace) -> None:
    from recipes.demo_vlm.costs import cost_shares, read_costs
    from recipes.demo_vlm.picture import choose_panels, draw_picture

    from chronostat.data.demo import DemoTask
    from chronostat.models.load import load_vlm

    torch.set_num_threads(1)
    vlm = load_vlm(arguments.model, device="cpu", dtype="float32")
    panels = choose_panels(vlm, DemoTask().split("test")[:500], cost_shares(read_costs(arguments.costs)))
    draw_picture(arguments.out, panels)


if __name__ == "__main__":
    main()
