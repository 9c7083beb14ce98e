"""``pool``: neighbouring image tokens become their average."""

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
        found = cells(picture.grid, count)
        weights = torch.zeros(count, len(picture.features))
        for row, cell in enumerate(found):
            weights[row, list(cell.tokens)] = 1 / len(cell.tokens)
        device = picture.features.device
        return Selection(
            tokens=torch.tensor([cell.middle for cell in found], device=device), weights=weights.to(device)
        )
