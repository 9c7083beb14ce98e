"""PEFT adapters beside a model's weights: loaded and named, or refused, never silently left out.

transformers loads an adapter that lies beside the weights where peft is installed, and passes over it without a word
where it is not: the base model would be measured under the adapter's name.
"""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from chronostat.errors import ModelError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
# for from_pretrained, which would load the adapter by itself, from a pickle too, and report its missing weights for the
# model's; it looks for adapters in a folder that nobody has
WITHOUT_ADAPTER = {"adapter_kwargs": {"subfolder": "loaded by chronostat"}}


def adapter_of(source: str, revision: str | None) -> Path | None:
    """The configuration of the adapter in a model directory or hub repository; None: there is none.

    Raises:
        ModelError: there is one, and peft is not installed or its weights are no safetensors.
    """
    found = find_adapter_config_file(source, revision=revision or "main")
    if found is None:
        return None
    if find_spec("peft") is None:
        raise ModelError(
            f"{source} holds an adapter ({CONFIG}, {_kind(Path(found))}), and peft, which loads it, is not installed: "
            "the base model would be measured under the adapter's name; install it with pip install peft, or move the "
            "adapter_ files out of the folder to use the base model"
        )
    if cached_file(source, WEIGHTS, revision=revision or "main", _raise_exceptions_for_missing_entries=False) is None:
        raise ModelError(
            f"{source} holds an adapter ({CONFIG}) without {WEIGHTS}; Chronostat loads safetensors only, save the "
            "adapter with save_pretrained, which writes them, or move the adapter_ files out of the folder"
        )
    return Path(found)


def check_no_adapter_alone(path: Path) -> None:
    """Refuse a directory that holds an adapter and no model.

    Raises:
        ModelError: it does; names the model that it was trained on.
    """
    file = path / CONFIG
    if not file.is_file():
        return
    base = _read(file).get("base_model_name_or_path")
    raise ModelError(
        f"{path} holds an adapter ({_kind(file)}) and no model; its base model is {base or 'not named'}: put the "
        "adapter_ files into a copy of that model's folder, or merge it (merge_and_unload) and save the whole model"
    )


def load_adapter(model: PreTrainedModel, source: str, revision: str | None) -> None:
    """Put the adapter beside the weights into the model, active.

    Raises:
        ModelError: it does not fit the model, or some of its weights are missing.
    """
    try:
        options: dict[str, Any] = {"adapter_kwargs": {"revision": revision or "main"}, "dtype": model.dtype}
        info: Any = model.load_adapter(source, use_safetensors=True, **options)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, TypeError, SafetensorError) as error:
        raise ModelError(f"cannot load the adapter in {source}: {error}; save it anew with save_pretrained") from error
    lost = sorted({*info.missing_keys, *info.unexpected_keys})
    if lost:
        raise ModelError(
            f"the adapter in {source} does not fit the model beside it: {len(lost)} weights are missing or have no "
            f"place ({', '.join(lost[:3])}); put it beside the model that it was trained on"
        )


def _kind(file: Path) -> str:
    return str(_read(file).get("peft_type", "of no named kind"))


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {file}: {error}; save the adapter anew with save_pretrained") from error
