"""Loading a model and its processor. Model files are data: safetensors only, and no remote code unless asked for."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from chronostat.errors import ModelError
from chronostat.models.adapters import WITHOUT_ADAPTER, adapter_of, check_no_adapter_alone, load_adapter
from chronostat.models.anatomy import anatomy_of
from chronostat.models.identity import fingerprint
from chronostat.models.molmo import first_molmo_class
from chronostat.models.refusals import missing_package

if TYPE_CHECKING:  # loading a model needs no pydantic, which the configuration is made of
    from chronostat.records.choices import Attention, DeviceName, DtypeName

BUNDLED = Path(__file__).parent.parent / "assets" / "demo_vlm"
# refused by name: reading them would run whatever code they hold
_PICKLES = ("*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True, kw_only=True)
class Vlm:
    """A loaded model with its processor.

    Attributes:
        name: where it came from, for people.
        fingerprint: who it is (``models/identity.py``); a controller is bound to it.
    """

    model: PreTrainedModel
    processor: ProcessorMixin
    name: str
    fingerprint: str


def load_vlm(
    path: str | Path | None = None,
    *,
    device: "DeviceName" = "auto",
    dtype: "DtypeName" = "auto",
    attention: "Attention" = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    layout: Mapping[str, str | Sequence[str]] | None = None,
    template: Mapping[str, Any] | None = None,
) -> Vlm:
    """Load a directory in the ``save_pretrained`` format, or a hub name; the bundled model if ``path`` is None.

    A PEFT adapter beside the weights is loaded too; the conditions of what is measured name it.
    Code for transformers 4 is repaired where it is that of the first Molmo generation (``models/molmo.py``).

    Args:
        path: directory or hub name.
        device: where it runs; ``auto`` takes CUDA if there is a device.
        dtype: of the weights; ``auto`` is float32 on the CPU and bfloat16 on CUDA.
        attention: implementation of all attention; ``auto`` leaves the choice to transformers.
        revision: branch, tag or commit of a hub model.
        trust_remote_code: run code that comes with the checkpoint.
        layout: module paths of parts that are not found by themselves.
        template: what the chat template is told, such as ``{"enable_thinking": False}``.

    Raises:
        ModelError: not a model directory, only pickled weights, missing weights, no processor, not an
            image-text-to-text model, own code without ``trust_remote_code``, no such device, an attention that the
            model or this machine does not have, a revision of a directory, an adapter that cannot be loaded or that has
            no model beside it, or a wrong ``layout``.
    """
    source = str(BUNDLED if path is None else path)
    place = _device(device)
    kind = _dtype(dtype, place)
    if Path(source).exists() or _looks_like_path(source):
        _check_directory(Path(source), revision)
    named: dict[str, Any] = {"trust_remote_code": trust_remote_code, "revision": revision or "main"}
    try:
        config = AutoConfig.from_pretrained(source, **named)  # a name with a typo waits for the hub once
        adapter = adapter_of(source, revision)
        kind_of_model = _model_class(source, config, trusted=trust_remote_code, revision=revision)
        processor = _load_processor(source, **named)
        _tell_template(processor, template or {}, source)
        chosen = {} if attention == "auto" else {"attn_implementation": attention}
        loaded: Any = kind_of_model.from_pretrained(
            source, dtype=kind, use_safetensors=True, output_loading_info=True, **named, **chosen, **WITHOUT_ADAPTER
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        # what transformers and safetensors raise for unusable directories
        if attention != "auto" and _is_about_attention(error):
            raise _unusable_attention(source, attention, error) from error
        where = "" if Path(source).exists() else f"there is no directory {source} here, and as a hub model: "
        option = "\non the command line: --trust-remote-code" if "trust_remote_code=True" in str(error) else ""
        raise ModelError(f"cannot load {source} as an image-text-to-text model: {where}{error}{option}") from error
    model, metadata = loaded
    _check_complete(source, metadata["missing_keys"])
    if adapter is not None:
        load_adapter(model, source, revision)
    model = model.to(place).eval()  # pyright: ignore[reportArgumentType] - a decorated method of the library
    anatomy_of(model, layout)
    return Vlm(model=model, processor=processor, name=_name(source), fingerprint=fingerprint(model))


def speaks_like_the_bundled(path: str | Path) -> bool:
    """Whether a directory has the tokenizer and chat template of the bundled model; nothing is loaded."""
    own, bundled = (_dialect(Path(folder)) for folder in (path, BUNDLED))
    return own is not None and own == bundled


def _dialect(folder: Path) -> tuple[object, str] | None:
    """Vocabulary with its rules, and template; None: it is no directory with both."""
    try:
        tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    # how the last batch was padded and cut is kept in the file too
    return {key: value for key, value in tokenizer.items() if key not in {"padding", "truncation"}}, template


def _is_about_attention(error: Exception) -> bool:
    """Whether the attention that was asked for is the reason; the library has no error class of its own for it."""
    said = str(error).lower()
    return isinstance(error, ImportError | ValueError) and ("attention" in said or "attn" in said)


def _unusable_attention(source: str, attention: str, error: Exception) -> ModelError:
    other = "eager" if attention == "sdpa" else "sdpa"
    return ModelError(
        f"attention {attention!r} cannot be used for {source}: it is not installed, or this model or device has none "
        f"({str(error).rstrip('.')}); choose another, such as --attention {other} (model.attention = {other!r})"
    )


def _device(name: "DeviceName") -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ModelError("model.device = 'cuda', but torch sees no CUDA device; use cpu or auto")
    use_cuda = name == "cuda" or (name == "auto" and torch.cuda.is_available())
    return torch.device("cuda", torch.cuda.current_device()) if use_cuda else torch.device("cpu")


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    return getattr(torch, name)


def _looks_like_path(source: str) -> bool:
    """Whether this can be no hub name, which is ``name`` or ``owner/name``."""
    return source.startswith((".", "~", "/")) or source.count("/") > 1


def _check_directory(path: Path, revision: str | None) -> None:
    if revision is not None:
        raise ModelError(f"{path} is a path, which has no revision {revision!r}; revisions are those of hub models")
    if not path.is_dir():
        raise ModelError(f"{path} is no directory; name a save_pretrained folder or a hub model")
    if not (path / "config.json").is_file():
        check_no_adapter_alone(path)
        raise ModelError(f"{path} is no model directory: it holds no config.json; name a save_pretrained folder")
    if all(file.name.startswith("adapter_") for file in path.glob("*.safetensors")):
        pickled = [file.name for pattern in _PICKLES for file in path.glob(pattern)]
        found = f"only pickled weights ({', '.join(pickled)})" if pickled else "no weights"
        raise ModelError(f"{path} holds {found}; Chronostat loads safetensors only, save it with safe serialization")


def _check_complete(source: str, missing: Collection[str]) -> None:
    if missing:
        some = ", ".join(sorted(missing)[:3])
        raise ModelError(f"{source} lacks {len(missing)} weights of the model ({some}); they would be random numbers")


def _model_class(
    source: str,
    config: Any,  # noqa: ANN401 - of any model
    *,
    trusted: bool,
    revision: str | None,
) -> Any:  # noqa: ANN401 - any class with from_pretrained
    auto_map = getattr(config, "auto_map", None) or {}
    own_code = trusted and "AutoModelForImageTextToText" in auto_map
    if config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES or own_code:
        return AutoModelForImageTextToText
    first_molmo = first_molmo_class(source, auto_map, revision) if trusted else None
    if first_molmo is None:
        raise ModelError(
            f"{source} is a {config.model_type!r} model, which takes no image: Chronostat needs an image-text-to-text "
            "model, for example internvl, qwen3_vl or llava (own code needs model.trust_remote_code = true)"
        )
    return first_molmo


def _load_processor(source: str, **named: Any) -> ProcessorMixin:  # noqa: ANN401 - revision, trust_remote_code
    try:
        processor = AutoProcessor.from_pretrained(source, **named)
    except ImportError as error:
        raise missing_package(source, error) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{source} has no usable processor ({error}); save one into the folder") from error
    if not isinstance(processor, ProcessorMixin) or getattr(processor, "image_processor", None) is None:
        raise ModelError(
            f"{source} has no processor for images (found {type(processor).__name__}); "
            "save the model's processor into the folder with processor.save_pretrained"
        )
    return processor


def _tell_template(processor: ProcessorMixin, told: Mapping[str, Any], source: str) -> None:
    """Set variables of the chat template in the template itself, so that whoever renders it renders it so."""
    if not told:
        return
    template: Any = getattr(processor, "chat_template", None)
    if not isinstance(template, str):
        raise ModelError(f"model.template = {dict(told)!r}, but the processor of {source} has no chat template to tell")
    unread = [name for name in told if name not in template]
    if unread:
        raise ModelError(
            f"model.template: {unread[0]!r} is read nowhere in the chat template of {source}; leave it out"
        )
    lines = (f"{{%- set {name} = {json.dumps(value)} -%}}" for name, value in told.items())
    processor.chat_template = "".join(lines) + template


def _name(source: str) -> str:
    return "bundled demo_vlm" if source == str(BUNDLED) else source
