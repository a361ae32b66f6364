"""``covid-ct evaluate``: how good the parts of the application are, on data whose truth is known."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from app.outcome import UsageError

_ROOT = Path(__file__).resolve().parent.parent


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command; nothing heavy is imported."""
    parts = parser.add_subparsers(metavar="WHAT", required=True)
    explanation = parts.add_parser("explanation", help="whether the heatmaps point at lesions, beside other methods")
    explanation.add_argument("-o", "--output", type=Path, required=True, help="folder for tables and pictures")
    explanation.add_argument("-m", "--model", type=Path, default=_ROOT / "models", help="folder of the models")
    explanation.add_argument("--phantoms", type=int, default=4, help="synthetic studies (default 4)")
    explanation.add_argument("--slices", type=Path, help="NPZ file of annotated slices, as covid-ct train takes them")
    explanation.add_argument("--studies", type=int, default=4, help="studies of that file (default 4)")
    explanation.add_argument("--in-plane", type=int, default=256, help="size of the phantoms' slices (default 256)")
    explanation.set_defaults(command=evaluate_explanation)


def evaluate_explanation(arguments: argparse.Namespace) -> None:
    """Judge the heatmaps of a classifier and write ``explanation.json``, ``explanation.md`` and pictures.

    Raises
    ------
    UsageError
        If captum is not installed, or there is nothing to judge on.
    """
    if arguments.phantoms < 1 and arguments.slices is None:
        raise UsageError("nothing to evaluate on: give --phantoms or --slices")
    if arguments.slices is not None and not arguments.slices.is_file():
        raise UsageError(f"{arguments.slices} is not a file")
    try:
        import captum  # noqa: F401
    except ImportError as error:
        raise UsageError("captum is needed to compare with: pip install 'covid-ct-map[evaluation]'") from error
    from app.explanation_cases import phantom_cases, slice_cases
    from app.explanation_quality import Judged, cascade, judge
    from app.explanation_report import draw_example, write_report
    from models.classifier.network import Classifier
    from models.store import ModelUnavailable, load_weights

    network = Classifier()
    try:
        load_weights(arguments.model / "classifier", network)
    except ModelUnavailable as error:
        raise UsageError(str(error)) from error
    cases = [("phantom", phantom_cases(arguments.phantoms, arguments.in_plane))]
    if arguments.slices is not None:
        cases.append(("slices", slice_cases(arguments.slices, arguments.studies)))
    scores, cascades = [], []
    examples: dict[tuple[str, str], Judged] = {}
    for data, source in cases:
        for number, case in enumerate(source):
            _tell(f"{data}, study {number // 2 + 1}, {case.mask} mask: {len(case.inputs)} slices")
            judged = judge(network, case, _tell)
            scores += judged.scores
            examples.setdefault((data, case.mask), judged)
            if case.mask == "complete":
                cascades.append(cascade(network, judged))
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_report(scores, cascades, arguments.output)
    for (data, mask), example in examples.items():
        draw_example(example, arguments.output / f"example_{data}_{mask}.png")
    _tell(f"written to {arguments.output}")


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
