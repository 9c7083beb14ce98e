"""measure: the stages of one request."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from chronostat.config import Config
from chronostat.console import survey_table
from chronostat.data.demo import DemoTask
from chronostat.data.jsonl import load_images
from chronostat.data.samples import Sample
from chronostat.errors import ConfigError, StoreError
from chronostat.execution import SampleRequest, request_for
from chronostat.material import load_model
from chronostat.models.load import Vlm
from chronostat.records import Setting
from chronostat.survey import survey


def measure(
    config: Config,
    images: Sequence[Path],
    prompt: str | None,
    settings: Sequence[str],
    repeats: int,
    json_file: Path | None,
    out: Console,
) -> None:
    """The stages of one request under some settings."""
    wanted = list(dict.fromkeys(Setting.parse(text) for text in settings))
    vlm = load_model(config)
    request = _request(vlm, images, prompt, own_model=config.model.path is not None)
    measured = survey(vlm, request, wanted, repeats=repeats, max_new_tokens=config.measure.max_new_tokens)
    out.print(survey_table(measured))
    if json_file is not None:
        _write_json(json_file, measured.to_json())
        out.print(f"every repeat: {json_file}")


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write where the user said, in place: it may be a pipe or a device."""
    try:
        path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}; name another file with --json") from None


def _request(vlm: Vlm, images: Sequence[Path], prompt: str | None, *, own_model: bool) -> SampleRequest:
    if images and prompt:
        sample = Sample(
            id="request", split="test", prompt=prompt, references=(), load_images=lambda: load_images(images)
        )
        return request_for(sample, vlm.processor, None)
    if images or prompt or own_model:
        raise ConfigError("give --image FILE and --prompt TEXT together; without both, the bundled model is measured")
    return request_for(DemoTask().split("validation")[0], vlm.processor, None)
