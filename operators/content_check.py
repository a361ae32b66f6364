"""Checking that the volume shows what the networks were made for: both lungs of a chest CT, whole, in HU."""

from __future__ import annotations

from typing import Any

import numpy as np
from monai.deploy.core import ExecutionContext, Fragment, InputContext, Operator, OperatorSpec, OutputContext
from scipy import ndimage

from models.morphology import SECOND_LUNG
from operators.findings import Lung, Lungs
from operators.journal import Journal
from operators.orientation import standard_lungs, standard_volume
from operators.refusal import InputRefused, ReasonCode
from operators.remarks import Remark, RemarkCode
from operators.volume import BoolArray, CTVolume, HuArray, plane_areas

TISSUE_FROM_HU = -300.0
"""Lung and air lie below, the rest of the body above."""
TISSUE_HU = (-150.0, 150.0)
"""Range of the median of all tissue: fat and muscle, with some bone."""
MIN_LUNG_ML = 500.0
"""Less is no pair of adult lungs, however diseased."""
MAX_LUNG_ML = 12_000.0
PIECES_MM = 2.0
"""Resolution at which lungs are looked at for pieces, where that of the CT is finer."""
USUAL_LUNG_ML = (1500.0, 9000.0)
USUAL_LUNG_HU = (-930.0, -500.0)
"""Range of the median over both lungs; emphysema lies below, widespread disease or expiration above."""
CUT_SHARE = 0.05
"""Share of the largest cross-section at and above which lungs in the outermost slice are remarked on,"""
REFUSED_SHARE = 0.4
"""and from which on too much is missing."""
EDGE_SHARE = 0.01
"""Share of the lung's outline in the slices that may lie at the edge of the field of view without a remark,"""
REFUSED_EDGE_SHARE = 0.15
"""and from which on too much is missing."""


def check_content(volume: CTVolume, lungs: Lungs) -> tuple[Remark, ...]:
    """Check attenuation, volume and completeness of the lungs.

    Parameters
    ----------
    volume : CTVolume
        The CT.
    lungs : Lungs
        On the grid of the CT.

    Returns
    -------
    tuple of Remark
        What makes the results less certain.

    Raises
    ------
    InputRefused
        ``IMPLAUSIBLE_HU``, ``NOT_CHEST_CT`` or ``PARTIAL_COVERAGE``.
    ValueError
        If the lungs are on another grid.
    """
    if not lungs.grid.matches(volume.grid):
        raise ValueError("the lungs must be on the grid of the CT")
    upright, standing = standard_volume(volume), standard_lungs(lungs)
    _check_tissue(upright.hu)
    return (
        *_check_volume(standing),
        *_check_pieces(standing),
        *_check_attenuation(upright.hu, standing),
        *_check_ends(standing.mask),
        *_check_edges(standing.mask, upright.hu),
    )


def _check_tissue(hu: HuArray) -> None:
    some = hu[::4, ::4, ::4]
    tissue = some[some > TISSUE_FROM_HU]
    middle = float(np.median(tissue)) if tissue.size else float("nan")
    if not TISSUE_HU[0] <= middle <= TISSUE_HU[1]:
        message = f"Soft tissue lies at {middle:.0f} HU, which cannot be; send the original series of the scanner."
        raise InputRefused(ReasonCode.IMPLAUSIBLE_HU, message)


def _check_volume(lungs: Lungs) -> list[Remark]:
    ml = [float(np.count_nonzero(lungs.labels == side)) * lungs.grid.voxel_ml for side in Lung]
    total = sum(ml)
    if not MIN_LUNG_ML <= total <= MAX_LUNG_ML:
        message = f"{total:.0f} ml of lung were found, no adult has that; send a CT of the whole chest."
        raise InputRefused(ReasonCode.NOT_CHEST_CT, message)
    remarks = []
    if min(ml) < SECOND_LUNG * max(ml):
        remarks.append(Remark(RemarkCode.ONE_LUNG, "Only one lung was found."))
    if not USUAL_LUNG_ML[0] <= total <= USUAL_LUNG_ML[1]:
        message = f"The lungs hold {total / 1000:.1f} L, which is unusual for an adult."
        remarks.append(Remark(RemarkCode.LUNG_VOLUME, message))
    return remarks


def _check_pieces(lungs: Lungs) -> list[Remark]:
    """Look for lungs in several large pieces: disease that was not taken for lung parts them, or one is no lung."""
    thinned = tuple(slice(None, None, max(1, int(PIECES_MM / step))) for step in lungs.grid.spacing)
    for side in Lung:
        pieces, count = ndimage.label(lungs.labels[thinned] == side)
        voxels = np.sort(np.bincount(pieces.ravel(), minlength=2)[1:])
        if count > 1 and voxels[-2] >= SECOND_LUNG * voxels[-1]:
            message = f"The {side.name.lower()} lung was found in pieces; look at what lies between them, and at each."
            return [Remark(RemarkCode.LUNG_IN_PIECES, message)]
    return []


def _check_attenuation(hu: HuArray, lungs: Lungs) -> list[Remark]:
    middle = float(np.median(hu[lungs.mask]))
    if USUAL_LUNG_HU[0] <= middle <= USUAL_LUNG_HU[1]:
        return []
    message = f"The lungs lie at {middle:.0f} HU in the median, which is unusual (emphysema, expiration, wide disease)."
    return [Remark(RemarkCode.LUNG_ATTENUATION, message)]


def _check_ends(mask: BoolArray) -> list[Remark]:
    """Look for lungs that go on beyond the lowest or the highest slice."""
    voxels = plane_areas(mask)
    area = voxels / max(int(voxels.max()), 1)
    remarks = []
    for share, code, end in (
        (float(area[0]), RemarkCode.LUNGS_CUT_BELOW, "lowest"),
        (float(area[-1]), RemarkCode.LUNGS_CUT_ABOVE, "highest"),
    ):
        if share >= REFUSED_SHARE:
            message = f"The lungs are cut off by the {end} slice; send a CT of the whole chest."
            raise InputRefused(ReasonCode.PARTIAL_COVERAGE, message)
        if share >= CUT_SHARE:
            message = f"The lungs reach the {end} slice: a part of them was not seen and is not measured."
            remarks.append(Remark(code, message))
    return remarks


def _check_edges(mask: BoolArray, hu: HuArray) -> list[Remark]:
    """Look for lungs that go on beyond the rows and columns of the images, or the circle of the reconstruction."""
    beside = ~_eroded(~_outside_reconstruction(hu))
    outlines = (plane & ~_eroded(plane) for plane in mask)
    counts = np.array([[np.count_nonzero(line), np.count_nonzero(line & beside)] for line in outlines])
    voxels, at_edge = counts.sum(axis=0).tolist()
    share = at_edge / max(voxels, 1)
    if share >= REFUSED_EDGE_SHARE:
        message = "The lungs are cut off by the edge of the images; send a series with the whole chest in view."
        raise InputRefused(ReasonCode.PARTIAL_COVERAGE, message)
    if share >= EDGE_SHARE:
        message = "The lungs reach the edge of the images: a part of them was not seen and is not measured."
        return [Remark(RemarkCode.LUNGS_CUT_BY_FIELD_OF_VIEW, message)]
    return []


def _outside_reconstruction(hu: HuArray) -> BoolArray:
    """Mark the outermost rows and columns, and what is exactly air in every slice: outside the circle, padding."""
    air = hu.min()
    never = np.ones(hu.shape[1:], bool)
    for plane in hu:
        never &= plane == air
    never[[0, -1], :] = True
    never[:, [0, -1]] = True
    return never


def _eroded(plane: BoolArray) -> BoolArray:
    """Erode by a pixel; the border of the image erodes, too."""
    padded = np.pad(plane, 1)
    inner = padded[1:-1, 1:-1]
    return np.asarray(inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:])


class ContentCheckOperator(Operator):
    """Check the content. Named inputs ``volume`` and ``lungs``; named output ``remarks``, those of the loader first."""

    def __init__(self, fragment: Fragment, *args: Any, journal: Journal, **kwargs: Any) -> None:
        self._journal = journal
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Declare the ports."""
        spec.input("volume")
        spec.input("lungs")
        spec.output("remarks")

    def compute(self, op_input: InputContext, op_output: OutputContext, context: ExecutionContext) -> None:
        """Receive CT and lungs, check, emit the remarks."""
        volume, lungs = op_input.receive("volume"), op_input.receive("lungs")
        with self._journal.node("Content check") as found:
            remarks = check_content(volume, lungs)
            for remark in remarks:
                found(remark.message)
            if not remarks:
                found("whole lungs")
        op_output.emit((*volume.remarks, *remarks), "remarks")
