"""``pool``: neighbouring image tokens become their average."""

from itertools import accumulate

import torch

from chronostat.tokens.grid import cells
from chronostat.tokens.methods.method import Method
from chronostat.tokens.selection import Picture, Selection


class Pool(Method):
    """The picture is cut into as many cells as tokens are kept; each becomes the average of its tokens.

    Average pooling of the features over the grid, as Cai et al. 2024 (Matryoshka Multimodal Models, arXiv:2405.17430)
    make their scales; here on models that were not trained with it, and for any number of cells.
    """

    name = "pool"

    def choose(self, picture: Picture, count: int) -> Selection:
        """One token for each cell, in the place of the cell's middle."""
        found, device = cells(picture.grid, count), picture.features.device
        starts = accumulate((len(cell.tokens) for cell in found[:-1]), initial=0)
        members = [token for cell in found for token in cell.tokens]
        return Selection(
            tokens=torch.tensor([cell.middle for cell in found], device=device),
            cells=(torch.tensor(members, device=device), torch.tensor(list(starts), device=device)),
        )
