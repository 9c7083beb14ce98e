"""`python -m recipes.demo_vlm train | table | check | gap`."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from recipes.demo_vlm.evaluate import accuracy_rows
from recipes.demo_vlm.gap import accuracies, gaps, model_ms, shares
from recipes.demo_vlm.train import TOY, Plan, Trainer

ASSET = Path(__file__).parents[2] / "src/chronostat/assets/demo_vlm"


def main() -> None:
    """Parses the command line and runs one verb."""
    parser = argparse.ArgumentParser(prog="python -m recipes.demo_vlm", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    train = verbs.add_parser("train", help="train from nothing, then count accuracies on the validation split")
    train.add_argument("--out", type=Path, required=True)
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--toy", action="store_true", help="seconds on a CPU, to try the script")
    train.add_argument("--seconds", type=float, nargs=2, help="length of the two stages")
    train.add_argument("--scenes", type=int, default=1024, help="validation scenes of the table")
    gap = verbs.add_parser("gap", help="print what is worth controlling, from a table")
    gap.add_argument("table", type=Path)
    arguments = parser.parse_args()
    {"train": _train, "gap": _gap}[arguments.verb](arguments)


def _train(arguments: argparse.Namespace) -> None:
    plan = replace(TOY if arguments.toy else Plan(), seed=arguments.seed)
    if arguments.seconds:
        plan = replace(plan, seconds=tuple(arguments.seconds))
    model = Trainer(plan, arguments.out).run()
    rows = accuracy_rows(
        model, split="validation", scenes=arguments.scenes, workers=plan.workers, batch=min(plan.batch, 128)
    )
    path = arguments.out / "table.json"
    path.write_text(json.dumps(rows))
    _print_gap(path)


def _gap(arguments: argparse.Namespace) -> None:
    _print_gap(arguments.table)


def _print_gap(path: Path) -> None:
    table = accuracies(json.loads(path.read_text()))
    columns = {
        "full": (16, 4, 8),
        "9 tiles": (9, 4, 8),
        "4 tiles": (4, 4, 8),
        "1 tile": (1, 4, 8),
        "top_k 2": (16, 2, 8),
        "top_k 1": (16, 1, 8),
        "6 blocks": (16, 4, 6),
        "4 blocks": (16, 4, 4),
        "3 blocks": (16, 4, 3),
        "1t 4b": (1, 4, 4),
        "all lowest": (1, 1, 3),
    }
    print("kind".ljust(11), *(name.rjust(10) for name in columns))
    for kind in table[16, 4, 8]:
        print(kind.ljust(11), *(f"{table[setting][kind]:10.3f}" for setting in columns.values()))
    weights = shares()
    means = (sum(table[s][kind] * weight for kind, weight in weights.items()) for s in columns.values())
    print("mean".ljust(11), *(f"{mean:10.3f}" for mean in means))
    for gap in gaps(table, {setting: model_ms(setting) for setting in table}):
        print(
            f"budget {gap.budget:.2f}: fixed {gap.fixed:.3f} {gap.fixed_setting}, mix {gap.mix:.3f}, "
            f"by kind {gap.by_kind:.3f}"
        )
        print("   ", " ".join(f"{kind}:{'/'.join(map(str, setting))}" for kind, setting in gap.choices.items()))


if __name__ == "__main__":
    main()
