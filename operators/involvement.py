"""Involvement of the lungs by 2DS, the binary 2D lesion model.

Source: Berenguer et al. 2020, arXiv:2011.11719, section 4; Tilborghs et al. 2020.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.deploy.core import ExecutionContext, Fragment, InputContext, Operator, OperatorSpec, OutputContext

from models.involvement.network import InvolvementNetwork, predict
from models.lung_region import lung_region
from operators.findings import Involvement, Lungs
from operators.journal import Journal
from operators.lesion_segmentation import around_lungs, remove_specks
from operators.orientation import involvement_on
from operators.resampling import at_least, resample, shape_at
from operators.volume import CTVolume, Grid

SLICES = 64
"""Slices in work at a time: bounds the memory, does not change the result."""


def segment_involvement(volume: CTVolume, lungs: Lungs, network: InvolvementNetwork) -> Involvement:
    """Mark affected lung in every axial slice.

    The network works on slices at its own pixel size, cropped to the bounding box of the lungs, blanked away from
    them; slices without lung are left out.

    Parameters
    ----------
    volume : CTVolume
        The CT.
    lungs : Lungs
        On the grid of the CT, not empty.
    network : InvolvementNetwork
        2DS, in evaluation mode.

    Raises
    ------
    ValueError
        If the lungs are on another grid or empty.
    """
    grid, box, hu, lung = around_lungs(volume, lungs)
    pixel = network.pixel_mm
    shape = shape_at(Grid(hu.shape, grid.affine), (grid.spacing[0], pixel, pixel))
    coarse_lung = at_least(lung, shape, 0.5)
    present = np.flatnonzero(coarse_lung.any(axis=(1, 2)))
    affected = np.zeros(hu.shape, bool)
    for some in np.split(present, range(SLICES, present.size, SLICES)):
        size = (some.size, *shape[1:])
        image = lung_region(torch.from_numpy(resample(hu[some], size)), coarse_lung[some], (pixel, pixel))
        probability = predict(network, image).numpy()
        affected[some] = at_least(probability, (some.size, *hu.shape[1:]), 0.5) & lung[some]
    mask = np.zeros(grid.shape, bool)
    mask[box] = remove_specks(affected, grid)
    return involvement_on(volume.grid, Involvement(mask, grid))


class InvolvementOperator(Operator):
    """Node: inputs ``volume`` and ``lungs``, output ``involvement``."""

    def __init__(
        self,
        fragment: Fragment,
        *args: Any,
        journal: Journal,
        network: InvolvementNetwork,
        **kwargs: Any,
    ) -> None:
        self._journal = journal
        self._network = network
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Declare the ports."""
        spec.input("volume")
        spec.input("lungs")
        spec.output("involvement")

    def compute(self, op_input: InputContext, op_output: OutputContext, context: ExecutionContext) -> None:
        """Receive CT and lungs, measure, emit the involvement."""
        volume: CTVolume = op_input.receive("volume")
        lungs: Lungs = op_input.receive("lungs")
        with self._journal.node("Involvement") as found:
            involvement = segment_involvement(volume, lungs, self._network)
            share = np.count_nonzero(involvement.mask) / np.count_nonzero(lungs.labels)
            found(f"{100.0 * share:.1f} % of the lungs involved")
        op_output.emit(involvement, "involvement")
