"""Explanation of the classification by layer-wise relevance propagation.

Source: Berenguer et al. 2020, arXiv:2011.11719, section 4.4.
"""

from __future__ import annotations

from typing import Any, Literal

from monai.deploy.core import ExecutionContext, Fragment, InputContext, Operator, OperatorSpec, OutputContext

from models.classifier.network import Classifier
from models.relevance.explain import explain
from operators.classification import as_tensor
from operators.findings import Classification, Explanation
from operators.journal import Journal
from operators.relevance_summary import check_explanation, lung_share

ExplainedClass = Literal["positive", "negative", "decision"]


def explain_classification(
    classification: Classification,
    network: Classifier,
    target: int = 1,
    *,
    gate_share: float = 1.0,
    residual_limit: float = 0.75,
) -> Explanation:
    """Distribute the logit of a class over the pixels of both input channels.

    Parameters
    ----------
    classification : Classification
        What to explain; its inputs are propagated again.
    network : Classifier
        The network that made it.
    target : int
        The class to explain: 0 negative, 1 positive.
    gate_share : float
        Share of its relevance that the gate hands to each branch: 1 as in the paper, 0.5 to split it.
    residual_limit : float
        What the sum of a heatmap may lack or exceed, as a share of what it explains, before it is unreliable.

    Raises
    ------
    FloatingPointError
        If a relevance is not finite.
    """
    inputs = as_tensor(classification.inputs, network)
    relevance = explain(network, inputs, target, gate_share=gate_share)
    ct, lesions = (heatmap.float().cpu().numpy() for heatmap in (relevance.ct, relevance.lesions))
    return Explanation(
        ct, lesions, classification.grid, target, relevance.logit, relevance.ledger, gate_share, residual_limit
    )


def explained_class(classification: Classification, choice: ExplainedClass) -> int:
    """Index of the class to explain; ``decision`` is the class decided for."""
    if choice == "decision":
        return int(classification.positive)
    return int(choice == "positive")


class ExplanationOperator(Operator):
    """Explain the classification.

    Named inputs ``classification``, ``remarks``; named outputs ``explanation``, ``remarks``, the received ones first.
    """

    def __init__(
        self,
        fragment: Fragment,
        *args: Any,
        journal: Journal,
        network: Classifier,
        target: ExplainedClass = "positive",
        gate_share: float = 1.0,
        residual_limit: float = 0.75,
        **kwargs: Any,
    ) -> None:
        self._journal = journal
        self._network = network
        self._target: ExplainedClass = target
        self._how = {"gate_share": gate_share, "residual_limit": residual_limit}
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Declare the ports."""
        spec.input("classification")
        spec.input("remarks")
        spec.output("explanation")
        spec.output("remarks")

    def compute(self, op_input: InputContext, op_output: OutputContext, context: ExecutionContext) -> None:
        """Receive the classification, explain it, emit."""
        classification, remarks = op_input.receive("classification"), op_input.receive("remarks")
        target = explained_class(classification, self._target)
        with self._journal.node("Explanation") as found:
            explanation = explain_classification(classification, self._network, target, **self._how)
            found(f"{100 * lung_share(classification, explanation):.0f} % of |relevance| inside the lungs")
            doubts = check_explanation(explanation)
            for doubt in doubts:
                found(doubt.message)
        op_output.emit(explanation, "explanation")
        op_output.emit((*remarks, *doubts), "remarks")
