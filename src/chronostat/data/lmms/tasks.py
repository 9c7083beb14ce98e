"""Which tasks of lmms-eval are read, and what of their documents is what; knows nothing of lmms-eval itself."""

from dataclasses import dataclass

from chronostat.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class LmmsTask:
    """One task.

    Attributes:
        folder: of its YAML below lmms_eval/tasks.
        quality: the scorer of ours that stands for its own.
        answers: the field of a document that holds its reference or references; None: what ``doc_to_target`` gives.
        options: the field that holds the options of a question; None: there is none.
        kind: the field that holds the kind of question; None: there is none.
    """

    folder: str
    quality: str
    answers: str | None = "answer"
    options: str | None = None
    kind: str | None = None


LMMS_TASKS: dict[str, LmmsTask] = {
    "textvqa_val": LmmsTask(folder="textvqa", quality="vqa", answers="answers"),
    "vqav2_val": LmmsTask(folder="vqav2", quality="vqa", answers="answers", kind="answer_type"),
    "ok_vqa_val2014": LmmsTask(folder="ok_vqa", quality="vqa", answers="answers", kind="question_type"),
    "chartqa": LmmsTask(folder="chartqa", quality="relaxed", kind="type"),
    "docvqa_val": LmmsTask(folder="docvqa", quality="anls", answers="answers"),
    "infovqa_val": LmmsTask(folder="infovqa", quality="anls", answers="answers"),
    "realworldqa": LmmsTask(folder="realworldqa", quality="choice"),
    "scienceqa_img": LmmsTask(folder="scienceqa", quality="choice", answers=None, options="choices", kind="topic"),
    "ai2d": LmmsTask(folder="ai2d", quality="choice", answers=None, options="options"),
    "pope": LmmsTask(folder="pope", quality="yes_no", kind="category"),
    "ocrbench": LmmsTask(folder="ocrbench", quality="contains", kind="question_type"),
    "mme": LmmsTask(folder="mme", quality="yes_no", kind="category"),
    "mmstar": LmmsTask(folder="mmstar", quality="choice", kind="category"),
}


def lmms_task(name: str) -> LmmsTask:
    """One of ``LMMS_TASKS``.

    Raises:
        ConfigError: unknown; lists the known names.
    """
    if name not in LMMS_TASKS:
        raise ConfigError(f"unknown data.task 'lmms:{name}'; known tasks of lmms-eval: {', '.join(LMMS_TASKS)}")
    return LMMS_TASKS[name]
