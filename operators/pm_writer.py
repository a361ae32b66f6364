"""Heatmaps as data: Parametric Maps of float32 at the explanation's own resolution (PS3.3 A.75)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from highdicom import PixelMeasuresSequence, PlaneOrientationSequence, PlanePositionSequence, VOILUTTransformation
from highdicom.pm import ParametricMap, RealWorldValueMapping
from monai.deploy.core import ExecutionContext, Fragment, InputContext, Operator, OperatorSpec, OutputContext

from operators.codes import CLASS_NAMES, NO_UNITS, SALIENCY
from operators.findings import Classification, Explanation
from operators.identity import Provenance, contributing_equipment, derived_uid, equipment, sign
from operators.journal import Journal
from operators.orientation import explanation_like
from operators.saving import save
from operators.seg_writer import as_single_frames, refer_to_sources
from operators.volume import CTVolume, FloatArray, Grid

SERIES_NUMBERS = {"ct": 9004, "lesions": 9005}
"""A series for each map: viewers show one map of a series."""
FOLDER = Path("pm")
CHANNELS = {"ct": "CT", "lesions": "lesion mask"}
"""Input channels of the classifier, by the name of their heatmap: what a person calls them."""
MARGIN_MM = 8.0
"""Around the lungs; beyond, the maps are not kept. With lesions in the mask some percent of the relevance lie there, on
black pixels; without any nearly all of it, which is next to nothing."""


def cropped_to_lungs(classification: Classification, explanation: Explanation) -> Explanation:
    """Return an explanation without the rows and columns that are far from the lungs; all slices stay.

    Parameters
    ----------
    classification : Classification
        What was explained: its CT channel is 0 outside the lungs.
    explanation : Explanation
        Heatmaps on the same grid.
    """
    lung = classification.inputs[:, 0] > 0
    _, dy, dx = explanation.grid.spacing
    rows = _around(np.flatnonzero(lung.any(axis=(0, 2))), MARGIN_MM / dy, lung.shape[1])
    columns = _around(np.flatnonzero(lung.any(axis=(0, 1))), MARGIN_MM / dx, lung.shape[2])
    affine = np.array(explanation.grid.affine)
    affine[:, 3] = affine @ [0, rows.start, columns.start, 1]
    ct, lesions = (np.ascontiguousarray(map_[:, rows, columns]) for map_ in (explanation.ct, explanation.lesions))
    shape = ct.shape[0], ct.shape[1], ct.shape[2]
    return replace(explanation, ct=ct, lesions=lesions, grid=Grid(shape, affine))


def _around(occupied: np.ndarray[Any, Any], margin: float, size: int) -> slice:
    if not occupied.size:
        return slice(0, size)
    return slice(max(0, int(occupied[0] - margin)), min(size, int(occupied[-1] + margin) + 1))


def make_parametric_map(
    volume: CTVolume, explanation: Explanation, channel: str, provenance: Provenance
) -> ParametricMap:
    """Make the parametric map of one channel.

    Parameters
    ----------
    volume : CTVolume
        The CT: patient, study, frame of reference.
    explanation : Explanation
        Heatmaps, on any grid; written arranged as the CT is.
    channel : str
        One of :data:`CHANNELS`.
    provenance : Provenance
        What produces the map.

    Returns
    -------
    ParametricMap
        float32, one frame for each slice, Explicit VR Little Endian. Real world values are relevance in units of the
        logit, quantity (130404, DCM, Saliency).
    """
    arranged = explanation_like(explanation, volume.grid)
    heatmap: FloatArray = getattr(arranged, channel)
    grid = arranged.grid
    z, y, x = grid.spacing
    places = (grid.affine @ [k, 0, 0, 1] for k in range(grid.shape[0]))
    mapping = RealWorldValueMapping(
        lut_label="RELEVANCE",
        lut_explanation=f"Relevance for {CLASS_NAMES[explanation.target]}, in logits",
        unit=NO_UNITS,
        value_range=(float(heatmap.min()), float(heatmap.max())),
        slope=1.0,
        intercept=0.0,
        quantity_definition=SALIENCY,
    )
    made = ParametricMap(
        source_images=as_single_frames(volume, grid),
        pixel_array=np.ascontiguousarray(heatmap),
        series_instance_uid=derived_uid(volume, provenance, f"relevance {channel} series"),
        series_number=SERIES_NUMBERS[channel],
        series_description=f"COVID-CT relevance, {CHANNELS[channel]} (research)",
        sop_instance_uid=derived_uid(volume, provenance, f"relevance {channel}"),
        instance_number=1,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[_window(float(np.abs(heatmap).max()))],
        pixel_measures=PixelMeasuresSequence(pixel_spacing=(y, x), slice_thickness=z, spacing_between_slices=z),
        plane_orientation=PlaneOrientationSequence("PATIENT", grid.orientation),
        plane_positions=[PlanePositionSequence("PATIENT", place[:3].tolist()) for place in places],
        content_label="RELEVANCE",
        content_description=f"Relevance of the {CHANNELS[channel]}, near the lungs",
        contributing_equipment=contributing_equipment(provenance),
        **equipment(volume, provenance),
    )
    refer_to_sources(made, volume)
    made.BodyPartExamined = "CHEST"
    dimensions = derived_uid(volume, provenance, "relevance dimensions")
    for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimensions
    sign(made, volume, provenance)
    return made


def _window(limit: float) -> VOILUTTransformation:
    """Return the window from ``-limit`` to ``limit``; only LINEAR_EXACT may be narrower than 1 (PS3.3, C.11.2.1.3)."""
    return VOILUTTransformation(window_center=0.0, window_width=2.0 * limit or 1.0, voi_lut_function="LINEAR_EXACT")


def write_parametric_maps(
    volume: CTVolume,
    classification: Classification,
    explanation: Explanation,
    provenance: Provenance,
    folder: Path,
    *,
    deflate: bool = False,
) -> Explanation:
    """Make the maps of both channels, save them in :data:`FOLDER` of ``folder``, and return what they hold."""
    cropped = cropped_to_lungs(classification, explanation)
    for channel in CHANNELS:
        made = make_parametric_map(volume, cropped, channel, provenance)
        save(made, folder / FOLDER / f"relevance_{channel}.dcm", deflate=deflate)
    return cropped


class PmWriterOperator(Operator):
    """Write the heatmaps to ``pm/relevance_ct.dcm`` and ``pm/relevance_lesions.dcm``.

    Named inputs ``volume``, ``classification``, ``explanation``.

    Parameters
    ----------
    folder : Path
        Folder of the outputs.
    provenance : Provenance
        What produces the maps.
    deflate : bool
        Write them in Deflated Explicit VR Little Endian.
    """

    def __init__(
        self,
        fragment: Fragment,
        *args: Any,
        journal: Journal,
        folder: Path,
        provenance: Provenance,
        deflate: bool = False,
        **kwargs: Any,
    ) -> None:
        self._journal = journal
        self._folder = folder
        self._provenance = provenance
        self._deflate = deflate
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Declare the ports."""
        for name in ("volume", "classification", "explanation"):
            spec.input(name)

    def compute(self, op_input: InputContext, op_output: OutputContext, context: ExecutionContext) -> None:
        """Receive the explanation, make and write the maps."""
        volume = op_input.receive("volume")
        classification, explanation = op_input.receive("classification"), op_input.receive("explanation")
        with self._journal.node("Relevance writer") as found:
            cropped = write_parametric_maps(
                volume, classification, explanation, self._provenance, self._folder, deflate=self._deflate
            )
            found("{} slices of {} x {}".format(*cropped.grid.shape))
