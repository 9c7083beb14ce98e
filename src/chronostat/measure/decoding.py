"""How tokens are chosen in the calls that Chronostat makes: greedily, or as the checkpoint samples, from a seed.

``measuring`` and ``measure_generate`` measure a call as it is and have no part in this.
"""

import copy
import hashlib
import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.configuration_utils import GenerationMode

from chronostat.errors import ConfigError, MeasurementError
from chronostat.measure.arguments import effective_config
from chronostat.records import Setting

# what a checkpoint can ask for beside the most probable token each time, with the value that does not ask for it
_SEARCH: Mapping[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "penalty_alpha": 0.0,
    "use_mtp": False,
}
# read only while sampling, with the values that transformers takes where none is given
_SAMPLING: Mapping[str, Any] = {
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "min_p": None,
    "top_h": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
# read only by a search along several beams
_BEAMS: Mapping[str, Any] = {"early_stopping": False, "length_penalty": 1.0}
# change the scores of tokens, always alike, so that greedy decoding keeps them; with the values that change nothing
_SCORES: Mapping[str, Any] = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "exponential_decay_length_penalty": None,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "sequence_bias": None,
    "guidance_scale": 1,
    "watermarking_config": None,
}
_LONGEST = 40  # characters of a value that is shown; of a longer one a digest
_ONE_PATH = {False: GenerationMode.GREEDY_SEARCH, True: GenerationMode.SAMPLE}


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How tokens are chosen.

    Attributes:
        text: for conditions: ``greedy`` or ``sampled``, and every value of the checkpoint that has a part in it.
        changes: what ``generate()`` has to be told for that.
        note: what a person should know where the checkpoint asks for something else; None: it does not.
    """

    text: str
    changes: Mapping[str, Any]
    note: str | None

    def config(self, given: GenerationConfig | None) -> GenerationConfig | None:
        """What ``generate()`` is told, with what it was told already; None: nothing."""
        return _with(self.changes, given) if self.changes else given


def decoding_of(model: PreTrainedModel, *, sample: bool, given: GenerationConfig | None = None) -> Decoding:
    """How a model decodes here: greedily unless it is asked to sample, and then as its generation_config says.

    What the checkpoint asks for is left out where greedy decoding does not have it. What the caller gives is not: it
    fits or is refused.

    Args:
        model: the model.
        sample: whether it samples.
        given: what the caller passes to ``generate()``.

    Raises:
        ConfigError: it shall sample and has nothing to sample with, or ``given`` samples and there is no seed.
        MeasurementError: beams, assisted decoding or whatever else does not follow one path, token by token.
    """
    own = effective_config(model, None)
    asked = _departing(own, _SEARCH)
    neutral = {"num_return_sequences": 1} if sample else {name: _SEARCH[name] for name in asked}
    changes = {name: value for name, value in neutral.items() if name in asked and _open(given, name)}
    if sample:
        wanted = effective_config(model, given)
        changes |= {"do_sample": wanted.do_sample, **{name: _value(wanted, name) for name in _SAMPLING}}
    elif asked or _departing(own, _SAMPLING):
        changes |= {name: value for name, value in {**_SAMPLING, **_BEAMS}.items() if _open(given, name)}
    changes = {name: value for name, value in changes.items() if value is not None}
    config = effective_config(model, _with(changes, given))
    _require(config.get_generation_mode(), sample=sample)
    return Decoding(text=_text(config, sample=sample), changes=changes, note=_note(own, asked, sample=sample))


def own_decoding(model: PreTrainedModel) -> str:
    """The text of the decoding that the checkpoint asks for by itself: what older versions took over."""
    own = effective_config(model, None)
    mode = own.get_generation_mode()
    return _text(own, sample=mode == GenerationMode.SAMPLE) if mode in _ONE_PATH.values() else mode.value


def draw_seed(seed: int, sample_id: str, setting: Setting, *draw: str | int) -> int:
    """The seed of one draw: the same for the same arguments, whatever was executed before.

    Args:
        seed: of the run.
        sample_id: which sample is answered.
        setting: under which setting.
        draw: which draw of these it is.
    """
    knobs = sorted((name, value) for name, value in setting.items())
    content = json.dumps([seed, sample_id, knobs, *draw])
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:6])  # 48 bits: whole in every reader of JSON


@contextmanager
def seeded(device: torch.device, seed: int | None) -> Generator[None]:
    """Inside, torch draws from ``seed`` on the CPU and on ``device``; afterwards both go on where they were.

    Args:
        device: the model's.
        seed: None: nothing is drawn inside, so nothing is set.
    """
    if seed is None:
        yield
        return
    cards = [device.index] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cards):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would set those of other cards too
        for card in cards:
            torch.cuda.default_generators[card].manual_seed(seed)
        yield


def _with(changes: Mapping[str, Any], given: GenerationConfig | None) -> GenerationConfig:
    config = GenerationConfig() if given is None else copy.deepcopy(given)
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def _open(given: GenerationConfig | None, name: str) -> bool:
    """Whether the caller says nothing of it."""
    return given is None or getattr(given, name, None) is None


def _departing(config: GenerationConfig, neutral: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are given and not neutral."""
    values = {name: getattr(config, name, None) for name in neutral}
    return {name: value for name, value in values.items() if value is not None and value != neutral[name]}


def _value(config: GenerationConfig, name: str) -> Any:  # noqa: ANN401 - of any setting
    value = getattr(config, name, None)
    return _SAMPLING[name] if value is None else value


def _require(mode: GenerationMode, *, sample: bool) -> None:
    if mode == _ONE_PATH[sample]:
        return
    if mode == GenerationMode.GREEDY_SEARCH:
        raise ConfigError(
            "sampling was asked for, but the model's generation_config does not sample (do_sample is not true); leave "
            "--sample (measure.sample, sampling_seed) out, or set do_sample = true in its generation_config.json"
        )
    if mode == GenerationMode.SAMPLE:
        raise ConfigError(
            "the generation_config that was given samples (do_sample = True) without a seed, so that its answer could "
            "not be had again; give sampling_seed too, or leave do_sample out"
        )
    raise MeasurementError(
        f"the model's generation_config asks for {mode.value}, where decode per token has no meaning; settings are "
        "compared with greedy decoding or sampling, set num_beams = 1 and no assistant"
    )


def _text(config: GenerationConfig, *, sample: bool) -> str:
    drawn = {"temperature": _value(config, "temperature"), "top_k": _value(config, "top_k")} if sample else {}
    values = {**drawn, **(_departing(config, _SAMPLING) if sample else {}), **_departing(config, _SCORES)}
    return ", ".join(["sampled" if sample else "greedy", *(f"{name}={_shown(values[name])}" for name in values)])


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST else f"#{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _note(own: GenerationConfig, asked: Mapping[str, Any], *, sample: bool) -> str | None:
    """In words what is not done as the checkpoint asks."""
    left_out = [name for name in asked if not sample or name == "num_return_sequences"]
    if not left_out:
        return None
    wish = ", ".join(_wishes(own, left_out))
    if sample:
        return f"the checkpoint's generation_config asks for {wish}; a request has one answer here"
    kept = "; --sample keeps its sampling" if own.get_generation_mode() == GenerationMode.SAMPLE else ""
    return f"the checkpoint's generation_config asks for {wish}; answers are greedy here{kept}"


def _wishes(own: GenerationConfig, names: list[str]) -> Iterator[str]:
    for name in names:
        yield f"{name} = {getattr(own, name)}"
        if name == "do_sample":
            yield from (f"{drawn} = {value}" for drawn, value in _departing(own, _SAMPLING).items())
