"""What is seen of a request before it runs."""

from dataclasses import dataclass

from chronostat.evidence.linear import Floats


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What is seen of one request.

    Attributes:
        prompt: mean of the token embeddings of its text, shape [D].
        tokens: image and text tokens under each setting, shape [S, 2].
    """

    prompt: Floats
    tokens: Floats
