"""The requests of an arm, of which one is in memory at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from chronostat.data.quality import Quality
from chronostat.data.samples import Sample
from chronostat.execution.execute import SampleRequest, request_for
from chronostat.models.load import Vlm
from chronostat.models.refusals import try_prepare


@dataclass(frozen=True, kw_only=True)
class Requests(Sequence[SampleRequest]):
    """Requests of one model, whose images are opened when one of them is taken, and kept by nobody.

    Attributes:
        quality: how answers to samples with references are scored; None: not at all.
    """

    vlm: Vlm
    samples: Sequence[Sample]
    quality: Quality | None = None

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, index: int) -> SampleRequest: ...
    @overload
    def __getitem__(self, index: slice) -> "Requests": ...

    def __getitem__(self, index: int | slice) -> "SampleRequest | Requests":
        if isinstance(index, slice):
            return Requests(vlm=self.vlm, samples=self.samples[index], quality=self.quality)
        sample = self.samples[index]
        return request_for(sample, self.vlm.processor, self.quality if sample.references else None)

    @property
    def ids(self) -> tuple[str, ...]:
        """Those of the samples; no image is opened."""
        return tuple(sample.id for sample in self.samples)

    def check(self) -> None:
        """Prepare each once, so that a prompt or image that the processor refuses is said before anything is measured.

        Raises:
            ModelError: the processor lacks a package, or its template leaves images out.
            DataError: it refuses a request.
        """
        for request in self:
            try_prepare(
                request.processor,
                request.images,
                request.sample.asked,
                model=self.vlm.name,
                request=request.sample.id,
                device=self.vlm.model.device,
                dtype=self.vlm.model.dtype,
            )


def ids_of(requests: Sequence[SampleRequest]) -> tuple[str, ...]:
    """Who the requests of an arm are, in their order."""
    return requests.ids if isinstance(requests, Requests) else tuple(request.sample.id for request in requests)
