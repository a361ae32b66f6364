"""Settings that decide a result reach the node that heeds them, and change what the study is told to be.

The graph is the real one, but lungs and lesions are given, and no pictures are drawn: these take the time of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from holoscan.core import InputContext
from pydicom import Dataset

from app.application import CovidCTApplication, Models, StudyFindings
from app.settings import load_settings
from models.classifier.network import Classifier
from models.involvement.network import InvolvementNetwork
from models.lesions.network import LesionNetwork
from models.lungs.network import DeepMedic
from operators.codes import COVID_19
from operators.dicom_folder import scan_folder
from operators.findings import Involvement, Lesions, Lungs
from operators.journal import Journal
from operators.pm_writer import PmWriterOperator
from operators.refusal import InputRefused, ReasonCode
from operators.remarks import RemarkCode
from operators.sc_writer import ScWriterOperator
from operators.selection_rules import ANY_SERIES
from operators.studies import group_studies
from operators.summary_page import SUMMARY_INPUTS
from operators.volume import CTVolume
from tests.builders import write_series
from tests.operators.dicom_results import all_types, both_lungs, provenance

LUNGS = "operators.lung_segmentation.segment_lungs"


@dataclass(frozen=True)
class Run:
    """What a run found, and its report."""

    findings: StudyFindings
    report: Dataset

    @property
    def residuals(self) -> list[float]:
        """What each heatmap lacks or exceeds, as a share of what it explains."""
        channels = self.findings.relevance.ct, self.findings.relevance.lesions
        return [abs(each.residual / (each.residual + each.total)) for each in channels]

    @property
    def reported(self) -> list[str]:
        """What the report says of COVID-19."""
        return [item.ConceptCodeSequence[0].CodeMeaning for item in _evaluations(self.report)]

    @property
    def words(self) -> str:
        return self.report.to_json()


def _evaluations(item: Dataset) -> Iterator[Dataset]:
    if item.get("ValueType") == "CODE" and item.ConceptNameCodeSequence[0].CodeValue == COVID_19.value:
        yield item
    for part in item.get("ContentSequence", []):
        yield from _evaluations(part)


def _taking(*ports: str) -> Callable[[object, InputContext, object, object], None]:
    """Make a node do nothing but receive."""

    def compute(node: object, op_input: InputContext, op_output: object, context: object) -> None:
        for port in ports:
            op_input.receive(port)

    return compute


@pytest.fixture(scope="module")
def models() -> Models:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = DeepMedic(), LesionNetwork(), InvolvementNetwork(), Classifier().eval()
    return Models(*networks, provenance().models)


def _process(models: Models, series: Path, results: Path, *assignments: str) -> StudyFindings:
    (study,) = group_studies(scan_folder(series))
    settings = load_settings(["in_plane=32", *assignments])
    return CovidCTApplication(study, ANY_SERIES, results, models, settings, Journal()).process()


@pytest.fixture(scope="module")
def run(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Run]]:
    """Run with some settings, each choice once; all runs are of one series."""
    lungs, lesions = both_lungs(), all_types()
    hu = np.where(lungs > 0, -850.0, 40.0) + np.where(lesions > 0, 400.0, 0.0)
    series = tmp_path_factory.mktemp("series")
    write_series(series, hu + np.random.default_rng(3).normal(0, 20, hu.shape), (10.0, 6.0, 6.0))

    @cache
    def run(*assignments: str) -> Run:
        results = tmp_path_factory.mktemp("results")
        found = _process(models, series, results, *assignments)
        return Run(found, pydicom.dcmread(results / "sr" / "report.dcm"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LUNGS, lambda volume, network: Lungs(lungs.copy(), volume.grid))
        patch.setattr(
            "operators.lesion_segmentation.segment_lesions",
            lambda volume, lungs, network: Lesions(lesions.copy(), volume.grid),
        )
        patch.setattr(
            "operators.involvement.segment_involvement",
            lambda volume, lungs, network: Involvement(lesions > 0, volume.grid),
        )
        patch.setattr(ScWriterOperator, "compute", _taking(*SUMMARY_INPUTS))
        patch.setattr(PmWriterOperator, "compute", _taking("volume", "classification", "explanation"))
        yield run


@pytest.fixture(scope="module")
def plain(run: Callable[..., Run]) -> Run:
    """With no setting of these."""
    return run()


def _decided(run: Callable[..., Run], plain: Run, above: float) -> Run:
    """Of a run whose threshold lies above the probability, or below it."""
    threshold = plain.findings.classification.probability + above
    return run(f"threshold={threshold!r}", "target=decision")


@pytest.mark.parametrize(("above", "decision"), [(-1e-6, "positive"), (1e-6, "negative")])
def test_the_threshold_decides_and_with_it_what_is_explained(
    run: Callable[..., Run], plain: Run, above: float, decision: str
) -> None:
    probability = plain.findings.classification.probability
    done = _decided(run, plain, above)
    result, relevance = done.findings.classification, done.findings.relevance
    assert result.probability == pytest.approx(probability, abs=1e-7)
    assert result.threshold == probability + above
    assert result.positive == (decision == "positive")
    assert done.reported == [decision.capitalize()]
    assert f"positive at a probability of {probability + above:g} or more" in done.words
    assert relevance.explained == decision
    assert relevance.logit == pytest.approx(result.logits[decision == "positive"], rel=1e-4)
    assert f"relevance for the class COVID-19 {decision}" in done.words


def test_the_class_that_is_explained_and_the_share_of_the_gate_can_be_set(run: Callable[..., Run], plain: Run) -> None:
    """Whatever is decided; each branch then has half of what it has by default."""
    halved = run("target=negative", "gate_share=0.5", "threshold=0.01").findings
    whole = _decided(run, plain, 1e-6).findings.relevance  # for the same class
    assert halved.classification.positive
    relevance = halved.relevance
    assert (plain.findings.relevance.explained, relevance.explained) == ("positive", "negative")
    assert relevance.logit == relevance.ledger["logit"] == pytest.approx(halved.classification.logits[0], rel=1e-4)
    above_the_gate = ("logit", "aggregation", "descriptors", "pyramid")
    expected = {stage: total * (1.0 if stage in above_the_gate else 0.5) for stage, total in whole.ledger.items()}
    assert relevance.ledger == pytest.approx(expected, rel=1e-4)
    totals = {"gate": expected["gate"], "ct": relevance.ct.total, "lesions": relevance.lesions.total}
    assert all(totals.values())
    assert totals == pytest.approx({stage: expected[stage] for stage in totals}, rel=1e-4)


def test_how_much_may_be_missing_before_heatmaps_are_called_unreliable_can_be_set(
    run: Callable[..., Run], plain: Run
) -> None:
    assert min(plain.residuals) > 0.75, "weights at random explain next to nothing"
    loose = run(f"residual_limit={max(plain.residuals) + 1e-3!r}")
    assert loose.residuals == pytest.approx(plain.residuals, abs=1e-4)
    for done, reliable in ((plain, False), (loose, True)):
        remarks = [remark.code for remark in done.findings.remarks]
        assert (RemarkCode.EXPLANATION_UNRELIABLE not in remarks) == reliable
        assert (RemarkCode.EXPLANATION_UNRELIABLE not in done.words) == reliable
        relevance = done.findings.relevance
        assert (relevance.ct.reliable, relevance.lesions.reliable) == (reliable, reliable)


class _LoadedError(Exception):
    """Instead of all that follows."""


def test_the_greatest_gap_that_is_interpolated_can_be_set(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slices 2 mm apart with a gap of 6 mm."""

    def loaded(volume: CTVolume, network: object) -> Lungs:
        raise _LoadedError(str(volume.grid.shape[0]))

    monkeypatch.setattr(LUNGS, loaded)
    for path in write_series(tmp_path / "in", np.zeros((60, 8, 8)), (2.0, 1.0, 1.0))[30:32]:
        path.unlink()
    with pytest.raises(InputRefused, match="more than 5 mm") as refused:
        _process(models, tmp_path / "in", tmp_path / "out", "max_gap_mm=5")
    assert refused.value.code is ReasonCode.MISSING_SLICES
    with pytest.raises(_LoadedError, match="60"):
        _process(models, tmp_path / "in", tmp_path / "out", "max_gap_mm=7")
