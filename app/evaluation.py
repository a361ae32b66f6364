"""``covid-ct evaluate``: how good the parts of the application are, on data whose truth is known."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

from app.console import tell
from app.outcome import UsageError

_ROOT = Path(__file__).resolve().parent.parent


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command; nothing heavy is imported."""
    parts = parser.add_subparsers(metavar="WHAT", required=True)
    explanation = parts.add_parser("explanation", help="whether the heatmaps point at lesions, beside other methods")
    add = explanation.add_argument
    add("-o", "--output", type=Path, required=True, help="new folder for tables and pictures")
    add("-m", "--model", type=Path, default=_ROOT / "models", help="folder of the models")
    add("--phantoms", type=_count(0, 100), default=4, metavar="N", help="synthetic studies (default 4)")
    add("--slices", type=Path, metavar="FILE", help="NPZ file of annotated slices, as covid-ct train takes them")
    add("--studies", type=_count(1, 100), default=4, metavar="N", help="studies of that file (default 4)")
    add("--in-plane", type=_count(32, 1024), default=256, metavar="N", help="size of the phantoms (default 256)")
    explanation.set_defaults(command=evaluate_explanation)


def _count(lowest: int, highest: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(f"{value} is not from {lowest} to {highest}")
        return value

    return number


def evaluate_explanation(arguments: argparse.Namespace) -> None:
    """Judge the heatmaps of a classifier and write ``explanation.json``, ``explanation.md`` and pictures.

    Raises
    ------
    UsageError
        If captum is not installed, an argument cannot be used, or there is nothing to judge on.
    """
    try:
        import captum  # noqa: F401
    except ImportError as error:
        raise UsageError("captum is needed to compare with: pip install 'covid-ct-map[evaluation]'") from error
    from app.explanation_cases import phantom_cases, read_slices, slice_cases
    from app.explanation_quality import evaluate
    from app.explanation_report import write_report
    from models.classifier.network import Classifier
    from models.record import ModelUnavailable
    from models.store import load_weights

    output, network = arguments.output, Classifier()
    try:
        load_weights(arguments.model / "classifier", network)
    except ModelUnavailable as error:
        raise UsageError(str(error)) from error
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} is there already: name a new folder")
    slices = None if arguments.slices is None else read_slices(arguments.slices)
    try:
        output.absolute().parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=".covid-ct-evaluation-", dir=output.absolute().parent)
    except OSError as error:
        raise UsageError(f"cannot write to {output}: {error.strerror}") from error
    with scratch as folder:
        cases = [phantom_cases(arguments.phantoms, arguments.in_plane)]
        if slices is not None:
            cases.append(slice_cases(slices, arguments.studies))
        evaluation = evaluate(network, (case for source in cases for case in source), tell)
        if not evaluation.scores:
            raise UsageError("there is no study with lesions and healthy lung to evaluate on")
        results = Path(folder, "results")
        results.mkdir(mode=0o755)
        write_report(evaluation, results)
        results.rename(output)
    tell(f"written to {output}")
