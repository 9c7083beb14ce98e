"""Writes a task of lmms-eval as our own Parquet; the one module that imports lmms-eval, run as a process of its own.

``python -m chronostat.data.lmms.export NAME OUT.parquet FILE...``
"""

import importlib
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from chronostat.data.convert import message_row, write_rows
from chronostat.data.lmms.tasks import LmmsTask, lmms_task

_BUILDERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json"}


def main(name: str, to: str, *files: str) -> None:
    """Export the documents of a task."""
    known = lmms_task(name)
    write_rows(Path(to), _rows(name, known, build(name, known, files)))


def build(name: str, known: LmmsTask, files: Sequence[str]) -> Any:  # noqa: ANN401 - lmms-eval has no types
    """The task of lmms-eval with its data set replaced by local files, so that nothing is downloaded."""
    harness: Any = importlib.import_module("lmms_eval.tasks")
    folder = Path(harness.__file__).parent / known.folder
    manager = harness.TaskManager(include_path=str(folder), include_defaults=False)  # all tasks take half a minute
    config: dict[str, Any] = manager._get_config(name)
    split = config["test_split"]
    config["dataset_path"] = _BUILDERS[Path(files[0]).suffix]
    config["dataset_kwargs"] = {"data_files": {split: list(files)}}
    config.pop("dataset_name", None)
    return harness.get_task_dict([config], manager, task_type="simple")[name]


def _rows(name: str, known: LmmsTask, task: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401 - lmms-eval has no types
    for number, doc in enumerate(task.eval_docs):
        yield message_row(
            name=f"{name}-{number}",
            text=task.doc_to_text(doc),
            images=[_png(image) for image in task.doc_to_visual(doc)],
            options=[str(option) for option in doc[known.options]] if known.options else [],
            answers=_answers(doc[known.answers] if known.answers else task.doc_to_target(doc)),
            kind=str(doc[known.kind]) if known.kind and doc.get(known.kind) is not None else None,
        )


def _answers(value: object) -> list[str]:
    """Those that are there: a document without any is refused, by its row, where the exported file is read."""
    values = value if isinstance(value, list) else [value]
    told = (each["answer"] if isinstance(each, Mapping) else each for each in values)
    return [str(answer) for answer in told if answer is not None]


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


if __name__ == "__main__":
    main(*sys.argv[1:])
