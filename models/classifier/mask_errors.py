"""Lesion masks as a segmentation might have found them, for classifiers that learn from true ones.

In use a classifier sees what the segmentation found: faint and thin parts and whole lesions are missing, borders lie
elsewhere, and vessels are taken for lesions. One that has learned from true masks alone does not know that.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

CUT = (0.15, 0.6)
"""Where the averaged mask is cut, at least and at most: generously or strictly."""
WIDTH = 5
"""Pixels over which a mask is averaged: its border moves by up to half of it."""
CELL = 24
"""Pixels over which errors are alike."""
CELL_SLICES = 4
"""Slices over which they are."""
MOVED = 1.5
"""Most that is added to the averaged mask, or taken from it; what is 1, deep inside a lesion, is lost with one half."""
DENSE = 0.5
"""Intensity (-300 HU) below which a lesion is faint."""
FAINTNESS = 3.0
"""Most that a lesion is less certain for each unit of intensity that it is fainter."""
VESSEL = 0.3
"""Intensity (-580 HU) above which lung may be taken for a lesion."""
SPURIOUS = 0.6
"""It is where errors are above one less this, at most."""
OVERLOOKED = 0.5
"""How often lesions are missed as a whole."""
LEAST_SEEN = 0.1
"""Least chance of each lesion to be seen then; it is drawn from here to 1, for all alike."""
ONE_SIDE = 0.4
"""How often only those of one half of the slices, which holds some, may be seen then."""


def with_errors(slices: Tensor, rng: np.random.Generator) -> Tensor:
    """Vary the lesion masks of slices as a segmentation errs, more or less.

    Parameters
    ----------
    slices : Tensor, shape (n, 3, H, W)
        CT in [0, 1], true lesion mask and lung mask, in the order in which they lie.
    rng : numpy Generator

    Returns
    -------
    Tensor
        A copy with another lesion mask, within the lungs.
    """
    ct, lesion, lung = slices.unbind(1)
    if rng.random() < OVERLOOKED:
        lesion = _some_lesions(lesion, rng)
    moved, faintness, spurious = rng.uniform(0.0, (MOVED, FAINTNESS, SPURIOUS))
    cut = rng.uniform(*CUT)
    near = F.avg_pool2d(lesion[:, None], WIDTH, stride=1, padding=WIDTH // 2)[:, 0]
    certainty = near + moved * _errors(ct, rng) - faintness * (DENSE - ct).clamp(min=0.0)
    marked = (near > 0.0) & (certainty >= cut)
    taken = (ct > VESSEL) & (_errors(ct, rng) > 1.0 - spurious)
    found = (marked | taken) & (lung > 0.0)
    return torch.stack([ct, found.to(slices.dtype), lung], dim=1)


def _some_lesions(lesion: Tensor, rng: np.random.Generator) -> Tensor:
    """Keep some lesions of a mask (n, H, W), of one half of the slices or both; at least one where there are any.

    What touches from one of the given slices to the next is one lesion, however far apart these lie in the patient.
    """
    labels, count = ndimage.label(lesion.numpy(), np.ones((3, 3, 3)))
    if not count:
        return lesion
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:].astype(float)
    if rng.random() < ONE_SIDE:
        half = labels[..., : labels.shape[2] // 2]
        left = 2 * np.bincount(half.ravel(), minlength=count + 1)[1:] >= sizes
        sides = [side for side in (left, ~left) if side.any()]
        sizes *= sides[int(rng.integers(len(sides)))]
    seen = (sizes > 0) & (rng.random(count) < rng.uniform(LEAST_SEEN, 1.0))
    if not seen.any():
        seen[rng.choice(count, p=sizes / sizes.sum())] = True
    return torch.from_numpy(np.append(False, seen)[labels]).to(lesion)


def _errors(like: Tensor, rng: np.random.Generator) -> Tensor:
    """Draw a smooth field (n, H, W) of numbers between -1 and 1."""
    count, rows, columns = like.shape
    coarse = (count // CELL_SLICES + 2, rows // CELL + 2, columns // CELL + 2)
    drawn = torch.from_numpy(rng.uniform(-1.0, 1.0, coarse)).to(like)
    return F.interpolate(drawn[None, None], size=(count, rows, columns), mode="trilinear")[0, 0]
