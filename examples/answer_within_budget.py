"""Answer one question under tighter and tighter budgets with a trained controller.

``python examples/answer_within_budget.py RUN/controller``, where RUN is the directory of a run that has trained on the
bundled model, for example with ``make demo``. Nothing is trained here.
"""

import sys

import torch

from chronostat import ChronostatError, load_controller, load_vlm
from chronostat.data.demo import DemoTask
from chronostat.errors import BudgetError

FRACTIONS = (1.0, 0.5, 0.3)  # of the latency of full


def main() -> None:
    """Answer and print."""
    if len(sys.argv) != 2:
        sys.exit("name one directory: python examples/answer_within_budget.py RUN/controller")
    torch.set_num_threads(1)  # as it was trained; the thread count is a condition of every number
    vlm = load_vlm(device="cpu")  # where the demo runs
    controller = load_controller(sys.argv[1], vlm.model, vlm.processor)
    sample = DemoTask().split("test")[0]
    (image,) = sample.load_images()
    print(f"{sample.prompt} (right: {sample.references[0]}); full takes {controller.full_ms:.1f} ms")
    for fraction in FRACTIONS:
        budget_ms = fraction * controller.full_ms
        try:
            execution = controller.generate(vlm.model, vlm.processor, image, sample.prompt, budget_ms=budget_ms)
        except BudgetError as error:  # says what the cheapest setting needs
            print(f"mean budget {budget_ms:.1f} ms: {error}")
            continue
        used_ms = execution.charged_ms(controller.metric)
        print(f"mean budget {budget_ms:.1f} ms: {execution.answer!r} in {used_ms:.1f} ms, {execution.setting}")


if __name__ == "__main__":
    try:
        main()
    except ChronostatError as error:
        sys.exit(f"{type(error).__name__}: {error}")
