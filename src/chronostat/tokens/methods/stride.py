"""``stride``: image tokens at even distances, whatever they show."""

import torch

from chronostat.tokens.grid import cells
from chronostat.tokens.methods.method import Method
from chronostat.tokens.selection import Picture, Selection


class Stride(Method):
    """The middle token of each cell of a regular grid.

    Uniform sampling of the visual tokens, the baseline that Wen et al. 2025 (Token Pruning in Multimodal Large Language
    Models: Are We Solving the Right Problem?, arXiv:2502.11501) hold methods of choosing against.
    """

    name = "stride"

    def choose(self, picture: Picture, count: int) -> Selection:
        """The cells are those of ``pool``."""
        middles = [cell.middle for cell in cells(picture.grid, count)]
        return Selection(tokens=torch.tensor(middles, device=picture.features.device))
