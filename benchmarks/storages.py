"""Which storages of weights can be measured, and which knobs work on each? ``python -m benchmarks.storages``.

The bundled model is saved in each storage, loaded by ``load_vlm`` and executed under full and one value of each knob.
The table holds the counted work, whether the weights kept every bit and the fingerprint stayed, and for a storage that
cannot be loaded here the reason. Nothing is timed.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from benchmarks.kit.estimates import markdown_table
from chronostat.data.demo import DemoTask
from chronostat.errors import ChronostatError
from chronostat.execution.execute import execute, request_for
from chronostat.measure.work import Work, counted_work
from chronostat.models.identity import unlike
from chronostat.models.load import BUNDLED, Vlm, load_vlm
from chronostat.models.weights import weights_checksum
from chronostat.records import Setting

SETTINGS = ("full", "vision_tokens=80", "moe_topk=1", "block_skip=2,3,4,5")
HEAD = ("storage", "loaded as", *SETTINGS, "every bit and the fingerprint stay")
_GROUP = 32  # weights that share a scale, in what is packed here
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True, kw_only=True)
class Storage:
    """A way to store weights.

    Attributes:
        needs: packages that loading it takes.
        save: writes the weights and the configuration of the bundled model so into a folder.
        dtype: to load it in: some keep the dtype of the activations that they were saved with.
    """

    needs: tuple[str, ...]
    save: Callable[[Path], None]
    dtype: Literal["float32", "bfloat16"] = "float32"

    @property
    def missing(self) -> list[str]:
        """Packages that are not installed."""
        return [name for name in self.needs if find_spec(name) is None]

    def load(self, folder: Path) -> Vlm:
        """Save the bundled model so into an empty folder, and load it.

        Raises:
            ModelError: it cannot be loaded here; says why.
        """
        AutoProcessor.from_pretrained(BUNDLED).save_pretrained(folder)
        self.save(folder)
        return load_vlm(folder, device="cpu", dtype=self.dtype)


def _plain(folder: Path) -> None:
    shutil.copytree(BUNDLED, folder, dirs_exist_ok=True)


def _quantised(config: Callable[[], Any], dtype: torch.dtype = torch.float32) -> Callable[[Path], None]:
    """Quantised by the library as it loads, and saved."""

    def save(folder: Path) -> None:
        loading: Any = AutoModelForImageTextToText
        loading.from_pretrained(BUNDLED, quantization_config=config(), dtype=dtype).save_pretrained(folder)

    return save


def _bitsandbytes(**options: Any) -> Any:  # noqa: ANN401 - of a library that need not be installed
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(**options)


def _torchao(name: str, **options: object) -> Any:  # noqa: ANN401 - as above
    import torchao.quantization  # pyright: ignore[reportMissingImports]
    from transformers import TorchAoConfig

    return TorchAoConfig(getattr(torchao.quantization, name)(**options))


def _int4() -> Any:  # noqa: ANN401 - as above
    from torchao.quantization import PerGroup  # pyright: ignore[reportMissingImports]

    int4: Any = vars(torch)["int4"]  # stubs do not know it
    return _torchao("IntxWeightOnlyConfig", weight_dtype=int4, granularity=PerGroup(_GROUP))


def _packed(method: str, pack: Callable[[Tensor], dict[str, Tensor]], **metadata: object) -> Callable[[Path], None]:
    """The attention of the language model packed by hand: the libraries only pack by calibrating on a GPU."""

    def save(folder: Path) -> None:
        _plain(folder)
        weights, stored = load_file(folder / "model.safetensors"), dict[str, Tensor]()
        for name, weight in weights.items():
            if "language_model" in name and "self_attn" in name and name.endswith("proj.weight"):
                stored.update({f"{name.removesuffix('weight')}{part}": made for part, made in pack(weight).items()})
            else:
                stored[name] = weight
        save_file(stored, folder / "model.safetensors", {"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": _GROUP, **metadata}
        (folder / "config.json").write_text(json.dumps(config))

    return save


def _grouped(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Of a weight of shape [out, in] numbers from 1 to 15 around 8, shape [in, out], and scales, [groups, out]."""
    groups = weight.float().T.unflatten(0, (-1, _GROUP))
    scales = (groups.abs().amax(dim=1) / 7).clamp(min=1e-6)
    return (groups / scales[:, None]).round().add(8).to(torch.int64).flatten(0, 1), scales.half()


def _words(numbers: Tensor, order: tuple[int, ...] = tuple(range(8))) -> Tensor:
    """Eight numbers of 4 bits in one of 32, along the last dimension."""
    eights = numbers.unflatten(-1, (-1, 8))
    word = sum(eights[..., number] << 4 * place for place, number in enumerate(order))
    assert isinstance(word, Tensor)
    return torch.where(word >= 2**31, word - 2**32, word).to(torch.int32).contiguous()


def _gptq(weight: Tensor) -> dict[str, Tensor]:
    numbers, scales = _grouped(weight)
    zeros = torch.full_like(scales, 7, dtype=torch.int64)  # this format stores one less
    index = torch.arange(weight.shape[1], dtype=torch.int32) // _GROUP
    return {"qweight": _words(numbers.T).T.contiguous(), "qzeros": _words(zeros), "scales": scales, "g_idx": index}


def _awq(weight: Tensor) -> dict[str, Tensor]:
    numbers, scales = _grouped(weight)
    zeros = torch.full_like(scales, 8, dtype=torch.int64)
    return {"qweight": _words(numbers, _AWQ_ORDER), "qzeros": _words(zeros, _AWQ_ORDER), "scales": scales}


_BITSANDBYTES = ("bitsandbytes", "accelerate")
_GPTQ = {"desc_act": False, "sym": True, "checkpoint_format": "gptq"}
_AWQ = {
    "zero_point": True,
    "version": "gemm",
    "modules_to_not_convert": ["model.vision_tower", "model.multi_modal_projector", "lm_head"],
}
STORAGES: Mapping[str, Storage] = {
    "float16 safetensors": Storage(needs=(), save=_plain),
    "bitsandbytes 8 bit": Storage(needs=_BITSANDBYTES, save=_quantised(lambda: _bitsandbytes(load_in_8bit=True))),
    "bitsandbytes 4 bit": Storage(
        needs=_BITSANDBYTES, save=_quantised(lambda: _bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4"))
    ),
    "bitsandbytes 4 bit, scales quantised too": Storage(
        needs=_BITSANDBYTES,
        save=_quantised(lambda: _bitsandbytes(load_in_4bit=True, bnb_4bit_use_double_quant=True)),
    ),
    "torchao int8": Storage(needs=("torchao",), save=_quantised(lambda: _torchao("Int8WeightOnlyConfig", version=2))),
    "torchao int8, activations too": Storage(
        needs=("torchao",), save=_quantised(lambda: _torchao("Int8DynamicActivationInt8WeightConfig", version=2))
    ),
    "torchao int4": Storage(needs=("torchao",), save=_quantised(_int4, torch.bfloat16), dtype="bfloat16"),
    "torchao float8": Storage(needs=("torchao",), save=_quantised(lambda: _torchao("Float8WeightOnlyConfig"))),
    "GPTQ": Storage(needs=("gptqmodel", "optimum"), save=_packed("gptq", _gptq, **_GPTQ)),
    "AWQ": Storage(needs=("gptqmodel", "accelerate"), save=_packed("awq", _awq, **_AWQ)),
}


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a storage does under the knobs.

    Attributes:
        works: the counted work, by setting.
        bits_stay: every bit of the weights is after all executions what it was before the first.
        same_model: so is the fingerprint.
        answers_stay: full answers at the end as at the beginning.
    """

    works: Mapping[str, Work]
    bits_stay: bool
    same_model: bool
    answers_stay: bool


def look(vlm: Vlm) -> Seen:
    """Execute one request under full, each setting, and full again."""
    before = weights_checksum(vlm.model)
    request = request_for(DemoTask().split("validation")[0], vlm.processor, None)
    with counted_work(vlm.model) as works:
        ran = [
            execute(vlm.model, request, setting=Setting.parse(text), max_new_tokens=4) for text in (*SETTINGS, "full")
        ]
    return Seen(
        works=dict(zip(SETTINGS, works, strict=False)),
        bits_stay=weights_checksum(vlm.model) == before,
        same_model=unlike(vlm.fingerprint, vlm.model) is None,
        answers_stay=ran[0].output_ids == ran[-1].output_ids,
    )


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print(markdown_table([HEAD, *(_row(name, storage) for name, storage in STORAGES.items())]))


def _row(name: str, storage: Storage) -> list[str]:
    if storage.missing:
        return [name, f"needs {', '.join(storage.missing)}", *[""] * (len(HEAD) - 2)]
    with tempfile.TemporaryDirectory() as folder:
        try:
            vlm = storage.load(Path(folder))
        except ChronostatError as error:
            return [name, f"not loaded: {error}", *[""] * (len(HEAD) - 2)]
        seen = look(vlm)
    stays = seen.bits_stay and seen.same_model and seen.answers_stay
    return [name, storage.dtype, *(_said(seen.works[text]) for text in SETTINGS), "yes" if stays else "no"]


def _said(work: Work) -> str:
    return f"{work.image_tokens} / {work.experts_per_token:g} / {work.blocks_run} / {work.prefill_inputs / 1e6:.2f} M"


if __name__ == "__main__":
    main()
