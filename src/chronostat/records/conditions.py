"""Where and how latencies were measured, and which of them can be compared."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from chronostat.errors import UnlikeConditions

NOT_RECORDED = "not recorded"
_ONLY_TOLD = frozenset({"affinity", "commit"})
_YOUNGER = frozenset({"adapter"})  # not compared with records that are older than the field


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Where and how latencies were measured: what must be equal for two of them to be compared.

    ``affinity`` and ``commit`` are told where they differ, but refuse nothing: they rarely change a latency. A field
    that was not recorded has a value that no recorded one has, so it refuses.

    Attributes:
        cores: CPUs that the process may run on.
        gpu: serial identity of the card, since cards of one type differ; ``none`` on a CPU.
        max_sm_clock_mhz: the highest clock of the card; None: on a CPU, or not told.
        application_sm_clock_mhz: the clock that it was set to.
        power_limit_w: what the card was set to draw at most: there it lowers its clock.
        persistence: the driver stays loaded while nothing runs.
        mig: the card is divided.
        governor: of the CPU's frequency; ``unknown`` in most virtual machines.
        flush_denormals: numbers near 0 count as 0, which is faster and can change answers.
        compiled: a module of the model runs a compiled graph.
        engine: "eager", or "graph" where the decoder is replayed (``chronostat.engine``); before it was recorded there
            was no other than "eager".
        cache: ``cache_implementation`` of the model's generation configuration; ``default`` where it names none.
        adapter: names of the active PEFT adapters with their kind; ``none``; None: the record is older than this field.
        python: version of the interpreter, whose speed counts in every decode step.
        decoding: how tokens were chosen: ``greedy`` or ``sampled``, and what the checkpoint sets for it.
        affinity: the CPUs, by number.
        commit: of chronostat; its version where it was installed without one.
    """

    machine: str
    cpu: str
    cores: int
    device: str
    driver: str
    threads: int
    torch: str
    transformers: str
    dtype: str
    attention: str
    gpu: str = NOT_RECORDED
    max_sm_clock_mhz: int | None = None
    application_sm_clock_mhz: int | None = None
    power_limit_w: float | None = None
    persistence: bool | None = None
    mig: bool | None = None
    governor: str = NOT_RECORDED
    flush_denormals: bool | None = None
    compiled: bool | None = None
    cache: str = NOT_RECORDED
    python: str = NOT_RECORDED
    adapter: str | None = None
    engine: str = "eager"
    decoding: str = NOT_RECORDED
    affinity: str = NOT_RECORDED
    commit: str = NOT_RECORDED

    @property
    def fingerprint(self) -> str:
        """12 hexadecimal digits of SHA-256 over all fields: what every stored execution carries.

        The engine is left out where it is "eager", as in runs that were stored before there was another.
        """
        told = {name: value for name, value in asdict(self).items() if (name, value) != ("engine", "eager")}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Conditions":
        """Read what ``asdict`` wrote; fields that an older version did not record stay unrecorded.

        Raises:
            UnlikeConditions: it holds fields that this version does not know.
        """
        unknown = sorted(data.keys() - {each.name for each in fields(cls)})
        if unknown:
            raise UnlikeConditions(
                f"the conditions hold {', '.join(unknown)}, which this version of chronostat cannot compare; read them "
                "with the version that wrote them"
            )
        try:
            return cls(**data)
        except TypeError as error:
            raise UnlikeConditions(f"the conditions are incomplete ({error}); measure anew") from None

    def differences(self, other: "Conditions") -> tuple[list[str], list[str]]:
        """Fields that refuse a comparison, and fields that are only told, as ``name: mine != theirs``."""
        mine, theirs = asdict(self), asdict(other)
        unknown = {name for name in _YOUNGER if None in {mine[name], theirs[name]}}
        unequal = [name for name in mine if mine[name] != theirs[name] and name not in unknown]
        texts = {name: f"{name}: {mine[name]} != {theirs[name]}" for name in unequal}
        return [texts[n] for n in unequal if n not in _ONLY_TOLD], [texts[n] for n in unequal if n in _ONLY_TOLD]

    def require_comparable(self, other: "Conditions") -> None:
        """Accept conditions under which latencies can be compared.

        Raises:
            UnlikeConditions: names each field that differs.
        """
        differing, _ = self.differences(other)
        if differing:
            raise UnlikeConditions(f"measured under unlike conditions: {'; '.join(differing)}")
