"""The explanation of a classification, and both operators in a graph."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from monai.deploy.conditions import CountCondition
from monai.deploy.core import Application, ExecutionContext, InputContext, Operator, OperatorSpec, OutputContext

from models.classifier.network import Classifier
from models.relevance.explain import explain
from operators.classification import ClassificationOperator, classify
from operators.explanation import (
    ExplanationOperator,
    explain_classification,
    explained_class,
)
from operators.findings import Classification, Explanation, Lesions, Lungs
from operators.journal import Journal
from operators.relevance_summary import check_explanation, lung_share, summarise_relevance
from operators.remarks import Remark, RemarkCode
from operators.volume import CTVolume
from tests.builders import axial_grid, ct_volume


def network() -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return Classifier().eval()


def study() -> tuple[CTVolume, Lungs, Lesions]:
    volume = ct_volume(np.random.default_rng(0).normal(-600, 100, (10, 32, 32)))
    labels = np.zeros((2, *volume.grid.shape), np.uint8)
    labels[0, 1:9, 4:28, 4:28] = 1
    labels[1, 3:6, 8:14, 8:14] = 2
    return volume, Lungs(labels[0], volume.grid), Lesions(labels[1], volume.grid)


@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("gate_share", [1.0, 0.5])
def test_heatmaps_are_those_of_the_network_s_relevance(target: int, gate_share: float) -> None:
    model = network()
    classification = classify(*study(), model, 0.5, in_plane=32)
    explanation = explain_classification(classification, model, target, gate_share=gate_share)
    expected = explain(model, torch.tensor(classification.inputs), target, gate_share=gate_share)
    np.testing.assert_array_equal(explanation.ct, expected.ct.numpy())
    np.testing.assert_array_equal(explanation.lesions, expected.lesions.numpy())
    assert explanation.ledger == expected.ledger
    assert explanation.ledger["ct"] == pytest.approx(float(explanation.ct.sum(dtype=np.float64)), rel=1e-6)
    assert explanation.logit == pytest.approx(classification.logits[target], rel=1e-5)
    assert explanation.target == target
    assert explanation.grid is classification.grid
    assert explanation.ct.dtype == np.float32


def test_a_network_in_double_precision_explains_too() -> None:
    model = network()
    classification = classify(*study(), model, 0.5, in_plane=32)
    single = explain_classification(classification, model)
    double = explain_classification(classification, model.double())
    scale = float(np.abs(double.ct).sum())
    assert float(np.abs(single.ct - double.ct).sum()) / scale < 1e-2


def hand_made(lung_value: float) -> tuple[Classification, Explanation]:
    """Lung all around one air voxel of the middle slice; relevance 3 in the lung, 2 in the air, -5 and 2 outside."""
    inputs = np.zeros((3, 2, 7, 7), np.float32)
    inputs[:, 0, 2:5, 2:5] = lung_value
    inputs[1, 0, 3, 3] = 0.0
    ct, lesions = np.zeros((2, 3, 7, 7), np.float32)
    ct[1, 2, 2], ct[1, 3, 3], ct[1, 0, 0], lesions[1, 6, 6] = 3.0, 2.0, -5.0, 2.0
    grid = axial_grid((3, 7, 7))
    return Classification(inputs, grid, (0.0, 0.0), 0.5, 0.5), Explanation(ct, lesions, grid, 1, 2.0)


def test_lung_share_counts_absolute_relevance_of_both_channels_and_enclosed_air() -> None:
    assert lung_share(*hand_made(0.4)) == pytest.approx(5 / 12)


def test_the_dome_of_the_diaphragm_is_no_lung() -> None:
    """Lung is all around it in a slice, and not below."""
    classification, explanation = hand_made(0.4)
    inputs = classification.inputs.copy()
    inputs[0, 0, 3, 3] = 0.0
    assert lung_share(replace(classification, inputs=inputs), explanation) == pytest.approx(3 / 12)


def test_lung_share_without_relevance_is_zero() -> None:
    classification, explanation = hand_made(0.4)
    empty = np.zeros_like(explanation.ct)
    assert lung_share(classification, Explanation(empty, empty, explanation.grid, 1, 0.0)) == 0.0


def test_summary_states_totals_and_what_was_kept() -> None:
    classification, explanation = hand_made(0.4)
    summary = summarise_relevance(classification, replace(explanation, gate_share=0.5))
    assert (summary.explained, summary.logit, summary.lung_share) == ("positive", 2.0, pytest.approx(5 / 12))
    assert (summary.ct.total, summary.ct.residual) == (0.0, 1.0)
    assert (summary.lesions.total, summary.lesions.residual) == (2.0, -1.0)
    assert summarise_relevance(classification, explanation).ct.residual == 2.0


def with_sums(ct: float, lesions: float, **how: float) -> Explanation:
    """An explanation of the logit -2 whose heatmaps have these sums."""
    _, explanation = hand_made(0.4)
    heatmaps = [np.zeros_like(explanation.ct) for _ in range(2)]
    heatmaps[0][0, 2, 2], heatmaps[1][0, 2, 2] = ct, lesions
    return replace(explanation, ct=heatmaps[0], lesions=heatmaps[1], logit=-2.0, **how)  # type: ignore[arg-type]


@pytest.mark.parametrize(("total", "reliable"), [(-2, True), (-0.6, True), (-3.4, True), (-0.4, False), (-3.6, False)])
def test_heatmaps_far_from_the_logit_are_unreliable(total: float, reliable: bool) -> None:
    explanation = with_sums(total, -2.0)
    assert explanation.reliable(explanation.ct) == reliable
    assert [remark.code for remark in check_explanation(explanation)] == [
        RemarkCode.EXPLANATION_UNRELIABLE for _ in range(not reliable)
    ]


@pytest.mark.parametrize("limit", [0.5, 0.75, 1.0])
def test_a_heatmap_that_explains_nothing_is_unreliable(limit: float) -> None:
    explanation = with_sums(0.0, 2.0, residual_limit=limit)
    [remark] = check_explanation(explanation)
    assert remark.message == (
        "Do not rely on the relevance of the CT and of the lesion mask: its sum is too far from the logit."
    )
    nothing = replace(explanation, logit=0.0)
    assert not nothing.reliable(nothing.ct)


def test_half_of_the_gate_is_half_to_explain() -> None:
    explanation = with_sums(-1.0, -2.0, gate_share=0.5, residual_limit=0.5)
    assert explanation.reliable(explanation.ct)
    assert not explanation.reliable(explanation.lesions)


def test_summary_tells_what_is_reliable_and_the_whole_ledger() -> None:
    classification, _ = hand_made(0.4)
    ledger = {"logit": -2.0, "ct": 0.0}
    summary = summarise_relevance(classification, replace(with_sums(0.0, -2.0), ledger=ledger))
    assert (summary.ct.reliable, summary.lesions.reliable, summary.ledger) == (False, True, ledger)


def test_which_class_is_explained() -> None:
    grid = axial_grid((1, 4, 4))
    for probability, decided in ((0.6, 1), (0.4, 0)):
        classification = Classification(np.zeros((1, 2, 4, 4), np.float32), grid, (0.0, 0.0), probability, 0.5)
        assert explained_class(classification, "decision") == decided
        assert explained_class(classification, "positive") == 1
        assert explained_class(classification, "negative") == 0


ONE_LUNG = Remark(RemarkCode.ONE_LUNG, "Only one lung was found.")


class Source(Operator):
    def setup(self, spec: OperatorSpec) -> None:
        for name in ("volume", "lungs", "lesions", "remarks"):
            spec.output(name)

    def compute(self, op_input: InputContext, op_output: OutputContext, context: ExecutionContext) -> None:
        for name, value in zip(("volume", "lungs", "lesions"), study(), strict=True):
            op_output.emit(value, name)
        op_output.emit((ONE_LUNG,), "remarks")


class Sink(Operator):
    def __init__(self, fragment: Any, *args: Any, received: list[Any], **kwargs: Any) -> None:
        self._received = received
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        spec.input("explanation")
        spec.input("remarks")

    def compute(self, op_input: InputContext, op_output: OutputContext, context: ExecutionContext) -> None:
        self._received += [op_input.receive("explanation"), op_input.receive("remarks")]


class Graph(Application):
    def __init__(self, journal: Journal, model: Classifier, received: list[Any]) -> None:
        self._journal, self._model, self._received = journal, model, received
        super().__init__([])

    def compose(self) -> None:
        source = Source(self, CountCondition(self, 1), name="source")
        classification = ClassificationOperator(
            self, name="classification", journal=self._journal, network=self._model, threshold=0.5, in_plane=32
        )
        explanation = ExplanationOperator(
            self,
            name="explanation",
            journal=self._journal,
            network=self._model,
            target="negative",
            gate_share=0.5,
            residual_limit=1e-9,
        )
        ports = {("volume", "volume"), ("lungs", "lungs"), ("lesions", "lesions")}
        self.add_flow(source, classification, ports)
        self.add_flow(classification, explanation, {("classification", "classification")})
        self.add_flow(source, explanation, {("remarks", "remarks")})
        sink = Sink(self, name="sink", received=self._received)
        self.add_flow(explanation, sink, {("explanation", "explanation"), ("remarks", "remarks")})


def test_both_operators_work_in_a_graph_and_tell_what_they_found() -> None:
    lines: list[str] = []
    received: list[Any] = []
    journal, model = Journal(lines.append), network()
    Graph(journal, model, received).run()
    classification = classify(*study(), model, 0.5, in_plane=32)
    expected = explain_classification(classification, model, 0, gate_share=0.5)
    assert len(received) == 2
    assert received[1][0] == ONE_LUNG
    assert received[1][1].code == RemarkCode.EXPLANATION_UNRELIABLE
    np.testing.assert_allclose(received[0].ct, expected.ct, rtol=1e-4, atol=1e-6 * float(np.abs(expected.ct).max()))
    assert received[0].target == 0
    decision = "positive" if classification.positive else "negative"
    share = 100 * lung_share(classification, expected)
    assert lines[1].startswith(f"Classification: COVID-19 {decision}, probability {classification.probability:.2f} (")
    assert re.match(rf"Explanation: {share:.0f} % of \|relevance\| inside the lungs, Do not rely on", lines[3])
    assert list(journal.seconds) == ["Classification", "Explanation"]
