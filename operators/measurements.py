"""Volumes, mean attenuation and percentages of the lungs and of their lesions."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from monai.deploy.core import ExecutionContext, Fragment, InputContext, Operator, OperatorSpec, OutputContext
from pydantic import BaseModel, ConfigDict

from operators.findings import Involvement, Lesions, LesionType, Lung, Lungs
from operators.journal import Journal
from operators.remarks import Remark, RemarkCode
from operators.volume import BoolArray, CTVolume, HuArray, LabelArray

AGREEMENT = 3.0
"""By how many percentage points of the lungs the two lesion networks may differ."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Amount(_Frozen):
    """How much of a lung something takes up.

    Parameters
    ----------
    volume_ml : float
        Volume in ml.
    percent_of_lung : float or None
        100 * volume / volume of the lung; None where there is no lung.
    """

    volume_ml: float
    percent_of_lung: float | None


class LungMeasurements(_Frozen):
    """Measurements of one lung, or of both together.

    Parameters
    ----------
    volume_ml : float
        Volume of the lung mask in ml, lesions included.
    mean_hu : float or None
        Mean attenuation over the lung mask in Hounsfield units; None where there is no lung.
    ground_glass, consolidation, crazy_paving, combined : Amount
        Lesions by type.
    all_lesions : Amount
        Union of the four types.
    involvement : Amount
        Affected lung by the binary 2D model inside the lung mask (paper, 2DS).
    """

    volume_ml: float
    mean_hu: float | None
    ground_glass: Amount
    consolidation: Amount
    crazy_paving: Amount
    combined: Amount
    all_lesions: Amount
    involvement: Amount

    def lesion(self, kind: LesionType) -> Amount:
        """Amount of one type of lesion."""
        amount: Amount = getattr(self, kind.name.lower())
        return amount


class Measurements(_Frozen):
    """Measurements of both lungs together and of each; left and right are the patient's."""

    total: LungMeasurements
    left: LungMeasurements
    right: LungMeasurements


def measure(volume: CTVolume, lungs: Lungs, lesions: Lesions, involvement: Involvement) -> Measurements:
    """Measure lungs and lesions.

    Parameters
    ----------
    volume : CTVolume
        The CT.
    lungs, lesions, involvement
        Findings on the grid of the CT. Affected voxels outside the lungs are not counted.

    Returns
    -------
    Measurements
        For both lungs, the left and the right.

    Raises
    ------
    ValueError
        If a finding is not on the grid of the CT, or a lesion lies outside the lungs: its volume would
        then differ from that of its segment.
    """
    if not all(finding.grid.matches(volume.grid) for finding in (lungs, lesions, involvement)):
        raise ValueError("findings must be on the grid of the CT")
    if any(np.any((plane > 0) & (lung == 0)) for plane, lung in zip(lesions.labels, lungs.labels, strict=True)):
        raise ValueError("lesions must lie within the lungs")
    slices = zip(volume.hu, lungs.labels, lesions.labels, involvement.mask, strict=True)
    sums = np.sum([_sums(*planes) for planes in slices], axis=0)
    regions = {"total": [Lung.LEFT, Lung.RIGHT], "left": [Lung.LEFT], "right": [Lung.RIGHT]}
    voxel_ml = volume.grid.voxel_ml
    return Measurements(**{name: _measured(sums[sides].sum(axis=0), voxel_ml) for name, sides in regions.items()})


def check_agreement(measurements: Measurements) -> list[Remark]:
    """Remark where 3D U-Net and 2DS differ by more than :data:`AGREEMENT`: one of them, at least, is wrong."""
    total = measurements.total
    by_unet, by_2ds = (amount.percent_of_lung or 0.0 for amount in (total.all_lesions, total.involvement))
    if abs(by_unet - by_2ds) <= AGREEMENT:
        return []
    message = f"Check how much of the lungs is affected: {by_unet:.1f} % by the 3D U-Net, {by_2ds:.1f} % by 2DS."
    return [Remark(RemarkCode.INVOLVEMENT_DISAGREES, message)]


def _sums(hu: HuArray, lungs: LabelArray, lesions: LabelArray, involvement: BoolArray) -> npt.NDArray[np.float64]:
    """Sum up a slice by label of the lungs: voxels, HU, involved voxels, voxels of no and each lesion type."""
    sides, kinds = max(Lung) + 1, max(LesionType) + 1
    side = lungs.ravel()
    weights = (None, hu.ravel(), involvement.ravel())
    whole = [np.bincount(side, each, minlength=sides) for each in weights]
    pairs = np.bincount(side * np.uint8(kinds) + lesions.ravel(), minlength=sides * kinds).reshape(sides, kinds)
    return np.column_stack([*whole, pairs]).astype(np.float64)


def _measured(sums: npt.NDArray[np.float64], voxel_ml: float) -> LungMeasurements:
    voxels, hu, involved, _, *by_type = sums.tolist()

    def amount(of: float) -> Amount:
        return Amount(volume_ml=of * voxel_ml, percent_of_lung=100.0 * of / voxels if voxels else None)

    return LungMeasurements(
        volume_ml=voxels * voxel_ml,
        mean_hu=hu / voxels if voxels else None,
        all_lesions=amount(sum(by_type)),
        involvement=amount(involved),
        **{kind.name.lower(): amount(of) for kind, of in zip(LesionType, by_type, strict=True)},
    )


class MeasurementOperator(Operator):
    """Measure lungs and lesions.

    Named inputs ``volume``, ``lungs``, ``lesions``, ``involvement``, ``remarks``; named outputs ``measurements``,
    ``remarks``, the received ones first.
    """

    def __init__(self, fragment: Fragment, *args: Any, journal: Journal, **kwargs: Any) -> None:
        self._journal = journal
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Declare the ports."""
        for name in ("volume", "lungs", "lesions", "involvement"):
            spec.input(name)
        spec.input("remarks")
        spec.output("measurements")
        spec.output("remarks")

    def compute(self, op_input: InputContext, op_output: OutputContext, context: ExecutionContext) -> None:
        """Receive the findings, measure, emit."""
        remarks = op_input.receive("remarks")
        findings = [op_input.receive(name) for name in ("volume", "lungs", "lesions", "involvement")]
        with self._journal.node("Measurements") as found:
            measurements = measure(*findings)
            found(f"{measurements.total.volume_ml / 1000:.1f} L lung")
            found(f"{measurements.total.involvement.percent_of_lung or 0.0:.1f} % involved")
            doubts = check_agreement(measurements)
            for doubt in doubts:
                found(doubt.message)
        op_output.emit(measurements, "measurements")
        op_output.emit((*remarks, *doubts), "remarks")
