"""``norm``: the image tokens of the largest features."""

from chronostat.tokens.methods.method import Method
from chronostat.tokens.selection import Picture, Selection, highest


class Norm(Method):
    """The tokens whose features have the largest Euclidean norm after the projector.

    Darcet et al. 2024 (Vision Transformers Need Registers, arXiv:2309.16588) found that towers keep what they know of
    the whole image in a few tokens of large norm, which hold less of their own place than others.
    """

    name = "norm"

    def choose(self, picture: Picture, count: int) -> Selection:
        """By the norm of each feature."""
        return highest(picture.features.float().norm(dim=-1), count)
