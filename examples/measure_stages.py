"""Where does the time of one request go? The stages inside one ``generate()``, under three settings.

``python examples/measure_stages.py [MODEL]``; without MODEL the bundled one, whose knobs the settings are made for.
Each setting runs once to warm up and once to be measured; for intervals use ``chronostat measure``.
"""

import sys

import torch

from chronostat import ChronostatError, Execution, Setting, execute, load_vlm, request_for
from chronostat.data.demo import DemoTask

STAGES = ("vision_ms", "projector_ms", "llm_prefill_ms", "prefill_rest_ms", "prefill_ms", "decode_ms", "total_ms")
SETTINGS = ("full", "vision_tokens=80", "vision_tokens=16 moe_topk=1 block_skip=2,3,4,5")


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)  # as the command line measures; the thread count is a condition of every number
    vlm = load_vlm(sys.argv[1] if len(sys.argv) > 1 else None)
    sample = DemoTask().split("validation")[0]
    request = request_for(sample, vlm.processor, None)
    print(f"{sample.prompt} (right: {sample.references[0]})")
    for text in SETTINGS:
        setting = Setting.parse(text)
        for _ in ("warm up", "measure"):
            execution = execute(vlm.model, request, setting=setting, max_new_tokens=8)
        print(f"\n{setting}: {execution.answer}")
        print("\n".join(lines(execution)))


def lines(execution: Execution) -> list[str]:
    """One line per stage; a stage that does not exist here has no number."""
    timing = execution.timing
    assert timing is not None
    values = [(stage, getattr(timing, stage)) for stage in STAGES]
    return [f"  {stage:16} {'-' if value is None else f'{value:7.1f}'}" for stage, value in values]


if __name__ == "__main__":
    try:
        main()
    except ChronostatError as error:
        sys.exit(f"{type(error).__name__}: {error}")
