"""The clinical graph: from a folder of CT images to report, segmentation and overlays."""

from __future__ import annotations

import sys
from concurrent.futures import wait
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Self

from holoscan.conditions import CountCondition
from monai.deploy.core import (
    Application,
    ExecutionContext,
    InputContext,
    Operator,
    OperatorSpec,
    OutputContext,
)

from app.outcome import RunFailed
from app.settings import Settings
from models.classifier.network import Classifier
from models.involvement.network import InvolvementNetwork
from models.lesions.network import LesionNetwork
from models.lungs.network import DeepMedic
from models.record import ModelUnavailable
from models.runtime import Runtime
from operators.classification import ClassificationOperator
from operators.content_check import ContentCheckOperator
from operators.explanation import ExplanationOperator
from operators.findings import Classification
from operators.identity import ModelSet, Provenance
from operators.involvement import InvolvementOperator
from operators.journal import Journal
from operators.lesion_segmentation import LesionSegmentationOperator
from operators.lung_segmentation import LungSegmentationOperator
from operators.measurements import MeasurementOperator, Measurements
from operators.pdf_writer import PdfWriterOperator
from operators.pm_writer import PmWriterOperator
from operators.relevance_summary import RelevanceSummary, summarise_relevance
from operators.remarks import Remark
from operators.sc_writer import ScWriterOperator
from operators.seg_writer import SegWriterOperator
from operators.selection_rules import SelectionRules
from operators.series_loader import SeriesLoaderOperator
from operators.software import NAME
from operators.sr_writer import SrWriterOperator
from operators.studies import Study
from operators.volume import CTVolume


@dataclass(frozen=True, slots=True)
class Models:
    """The networks with their weights, and the identity of these."""

    lungs: DeepMedic
    lesions: LesionNetwork
    involvement: InvolvementNetwork
    classifier: Classifier
    records: ModelSet

    @classmethod
    def load(cls, folder: Path, runtime: Runtime) -> Self:
        """Load all networks from the model folders in ``folder``, to run where ``runtime`` says.

        Raises
        ------
        RunFailed
            If a model is missing, incomplete or altered, or cannot be explained.
        """
        try:
            lungs, of_lungs = runtime.load(folder / "lungs", DeepMedic)
            lesions, of_lesions = runtime.load(folder / "lesions", LesionNetwork)
            involvement, of_involvement = runtime.load(folder / "involvement", InvolvementNetwork)
            classifier, of_classifier = runtime.load(folder / "classifier", Classifier)
        except ModelUnavailable as error:
            raise RunFailed(str(error)) from error
        if classifier.encoder.side_branch is None:
            raise RunFailed("model classifier: it has no side branch, which the heatmaps are made of")
        records = ModelSet(of_lungs, of_lesions, of_involvement, of_classifier)
        return cls(lungs, lesions, involvement, classifier, records)


class StudyFindings(NamedTuple):
    """What was found in a study."""

    volume: CTVolume
    measurements: Measurements
    classification: Classification
    relevance: RelevanceSummary
    remarks: tuple[Remark, ...]


class FindingsOperator(Operator):
    """End of the graph: keeps what ``result.json`` states.

    Named inputs as the fields of :class:`StudyFindings`, but ``explanation`` for its summary.
    """

    findings: StudyFindings | None = None

    def setup(self, spec: OperatorSpec) -> None:
        """Declare the ports."""
        for name in ("volume", "measurements", "classification", "explanation", "remarks"):
            spec.input(name)

    def compute(self, op_input: InputContext, op_output: OutputContext, context: ExecutionContext) -> None:
        """Receive the findings and keep them."""
        volume, measurements = op_input.receive("volume"), op_input.receive("measurements")
        classification = op_input.receive("classification")
        relevance = summarise_relevance(classification, op_input.receive("explanation"))
        self.findings = StudyFindings(volume, measurements, classification, relevance, op_input.receive("remarks"))


class CovidCTApplication(Application):
    """The graph of one study.

    Parameters
    ----------
    study : Study
        What to read.
    rules : SelectionRules
        Which of its series.
    results : Path
        Folder in which ``sr/``, ``seg/``, ``sc/`` and ``pm/`` are written.
    models : Models
        Networks with their weights.
    settings : Settings
        Checked settings.
    journal : Journal
        Told what the nodes find.
    """

    def __init__(
        self,
        study: Study,
        rules: SelectionRules,
        results: Path,
        models: Models,
        settings: Settings,
        journal: Journal,
    ) -> None:
        self._study = study
        self._rules = rules
        self._models = models
        self._settings = settings
        self._journal = journal
        self._results = results
        self._provenance = Provenance(models.records, settings.fingerprint, datetime.now().astimezone())
        super().__init__([sys.executable, NAME])  # else Holoscan parses the arguments of the process

    def compose(self) -> None:
        """Say which node gives what to which."""
        models, settings = self._models, self._settings
        told: dict[str, Any] = {"journal": self._journal}
        classifying = told | {"threshold": settings.threshold, "in_plane": settings.in_plane}
        explaining = told | settings.model_dump(include={"target", "gate_share", "residual_limit"})
        writing = told | {"folder": self._results, "provenance": self._provenance}
        deflating = writing | {"deflate": settings.deflate}
        once = CountCondition(self, 1)

        loading = told | {"study": self._study, "rules": self._rules, "max_gap_mm": settings.max_gap_mm}
        loader = SeriesLoaderOperator(self, once, name="loader", **loading)
        lungs = LungSegmentationOperator(self, name="lungs", network=models.lungs, **told)
        check = ContentCheckOperator(self, name="check", **told)
        lesions = LesionSegmentationOperator(self, name="lesions", network=models.lesions, **told)
        involvement = InvolvementOperator(self, name="involvement", network=models.involvement, **told)
        measurements = MeasurementOperator(self, name="measurements", **told)
        classification = ClassificationOperator(self, name="classification", network=models.classifier, **classifying)
        explanation = ExplanationOperator(self, name="explanation", network=models.classifier, **explaining)
        seg = SegWriterOperator(self, name="seg", **deflating)
        sr = SrWriterOperator(self, name="sr", **writing)
        sc = ScWriterOperator(self, name="sc", **writing)
        pm = PmWriterOperator(self, name="pm", **deflating)
        pages = [sc, PdfWriterOperator(self, name="pdf", **writing)] if settings.pdf else [sc]
        self._findings = FindingsOperator(self, name="findings")

        self._connect(loader, "volume", lungs, check, lesions, involvement, measurements, classification)
        self._connect(loader, "volume", seg, sr, *pages, pm, self._findings)
        self._connect(lungs, "lungs", check, lesions, involvement, measurements, classification, seg, *pages)
        self._connect(check, "remarks", measurements)
        self._connect(measurements, "remarks", explanation)
        self._connect(explanation, "remarks", sr, *pages, self._findings)
        self._connect(lesions, "lesions", measurements, classification, seg, *pages)
        self._connect(involvement, "involvement", measurements)
        self._connect(classification, "classification", explanation, sr, *pages, pm, self._findings)
        self._connect(explanation, "explanation", sr, *pages, pm, self._findings)
        self._connect(measurements, "measurements", sr, *pages, self._findings)
        self._connect(seg, "segmentation", sr)

    def _connect(self, source: Operator, port: str, *receivers: Operator) -> None:
        """Give what ``source`` emits at ``port`` to the input of the same name of each receiver."""
        for receiver in receivers:
            self.add_flow(source, receiver, {(port, port)})

    def process(self) -> StudyFindings:
        """Run the graph and return what ``result.json`` states.

        The graph runs in another thread, so that this one can be interrupted.

        Raises
        ------
        RunFailed
            If the graph ended without findings, as Holoscan does in silence where a node emits nothing.
        Exception
            Whatever a node raised, of its own type.
        """
        running = self.run_async()
        while not running.done():  # a wait without end would not let the main thread be interrupted
            wait([running], timeout=0.1)
        running.result()
        self.shutdown_async_executor()
        if self._findings.findings is None:
            raise RunFailed("the graph ended without findings")
        return self._findings.findings
