"""``covid-ct evaluate``: how good the parts of the application are, on data whose truth is known."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from app.console import tell
from app.outcome import UsageError

_ROOT = Path(__file__).resolve().parent.parent.parent


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
    classification = parts.add_parser("classification", help="how well positive is told from negative, with intervals")
    add = classification.add_argument
    add("--predictions", type=Path, required=True, metavar="FILE", help="CSV file, see docs/evaluation.md")
    add("-o", "--output", type=Path, required=True, help="new folder for tables, pictures and a page")
    _add_bootstrap(classification)
    classification.set_defaults(command=evaluate_classification)
    segmentation = parts.add_parser("segmentation", help="how well lungs and lesions are found, with intervals")
    add = segmentation.add_argument
    add("--cohort", type=Path, required=True, metavar="FOLDER", help="cohort with masks, see docs/training.md")
    source = segmentation.add_mutually_exclusive_group()
    source.add_argument(
        "--predictions", type=Path, metavar="FOLDER", help="STUDY_lungs.nii.gz and STUDY_lesions.nii.gz"
    )
    source.add_argument(
        "-m", "--model", type=Path, default=_ROOT / "models", help="folder of the models to run instead"
    )
    add("-o", "--output", type=Path, required=True, help="new folder for tables, a picture and a page")
    _add_bootstrap(segmentation)
    segmentation.set_defaults(command=evaluate_segmentation)
    compute = parts.add_parser("compute", help="what each model costs here, beside the paper's figures")
    add = compute.add_argument
    add("-i", "--input", type=Path, metavar="FOLDER", help="folder with a chest CT (default: a phantom)")
    add("-m", "--model", type=Path, default=_ROOT / "models", help="folder of the models")
    add("-o", "--output", type=Path, required=True, help="new folder for the table")
    compute.set_defaults(command=evaluate_compute)


def _add_bootstrap(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--replicates", type=_count(100, 100_000), default=2000, metavar="N", help="of the bootstrap (default 2000)")
    add("--seed", type=int, default=0, help="of the bootstrap (default 0)")


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
    from app.evaluation.explanation_cases import phantom_cases, read_slices, slice_cases
    from app.evaluation.explanation_quality import evaluate
    from app.evaluation.explanation_report import write_report
    from models.classifier.network import Classifier
    from models.record import ModelUnavailable
    from models.store import load_weights

    output, network = arguments.output, Classifier()
    try:
        load_weights(arguments.model / "classifier", network)
    except ModelUnavailable as error:
        raise UsageError(str(error)) from error
    slices = None if arguments.slices is None else read_slices(arguments.slices)
    with _new_folder(output) as results:
        cases = [phantom_cases(arguments.phantoms, arguments.in_plane)]
        if slices is not None:
            cases.append(slice_cases(slices, arguments.studies))
        evaluation = evaluate(network, (case for source in cases for case in source), tell)
        if not evaluation.scores:
            raise UsageError("there is no study with lesions and healthy lung to evaluate on")
        write_report(evaluation, results)
    tell(f"written to {output}")


def evaluate_classification(arguments: argparse.Namespace) -> None:
    """Judge predictions and write ``classification.json``, ``classification.csv``, ``index.html`` and pictures.

    Raises
    ------
    UsageError
        If Jinja is not installed, the predictions are wrong or lack a class, or the folder cannot be written.
    """
    _need_jinja()
    from app.evaluation.classification import compare, evaluate_all
    from app.evaluation.classification_report import write_classification
    from app.evaluation.predictions import read_predictions

    predictions = read_predictions(arguments.predictions)
    with _new_folder(arguments.output) as folder:
        try:
            chance = {"replicates": arguments.replicates, "seed": arguments.seed}
            results = evaluate_all(predictions, **chance)
            differences = [compare(first, second, **chance) for first, second in pairwise(results)]
        except ValueError as error:
            raise UsageError(f"{arguments.predictions}: {error}") from error
        write_classification(results, differences, folder, replicates=arguments.replicates)
    for result in results:
        tell(f"{result.model}: AUC {result.auc.text}, false positives at 95 % sensitivity {result.fpr_at_95.text}")
    print(arguments.output / "index.html")


def evaluate_segmentation(arguments: argparse.Namespace) -> None:
    """Judge masks and write ``segmentation.json``, ``segmentation.csv``, ``index.html`` and a picture.

    Raises
    ------
    UsageError
        If Jinja is not installed, cohort, masks or models cannot be used, or the folder cannot be written.
    """
    _need_jinja()
    from app.cohort.table import read_cohort
    from app.evaluation.segmentation import from_folder, score_cohort
    from app.evaluation.segmentation_report import write_segmentation

    studies = read_cohort(arguments.cohort)
    if arguments.predictions is not None:
        segment = from_folder(arguments.predictions)
    else:
        from app.evaluation.segmentation_model import from_models

        segment = from_models(arguments.model)
    with _new_folder(arguments.output) as folder:
        scores = score_cohort(studies, segment, tell)
        write_segmentation(scores, folder, replicates=arguments.replicates, seed=arguments.seed)
    print(arguments.output / "index.html")


def evaluate_compute(arguments: argparse.Namespace) -> None:
    """Measure what each model costs and write ``compute.json`` and ``compute.md``.

    Raises
    ------
    InputRefused
        If the folder holds no chest CT.
    RunFailed
        If a model is missing or altered.
    UsageError
        If the folder for the table cannot be written.
    """
    from app.application import Models
    from app.evaluation.compute import measure_costs, write_costs
    from app.phantom import make_phantom
    from app.training_data import bare_volume
    from operators.series_loader import load_ct_series

    if arguments.input is not None:
        volume = load_ct_series(arguments.input)
    else:
        phantom = make_phantom()
        volume = bare_volume(phantom.hu, phantom.spacing)
    with _new_folder(arguments.output) as folder:
        costs = measure_costs(volume, Models.load(arguments.model), tell=tell)
        write_costs(costs, volume, "auto", folder)
    print((arguments.output / "compute.md").read_text("utf-8"), end="")


def _need_jinja() -> None:
    try:
        import jinja2  # noqa: F401
    except ImportError as error:
        raise UsageError("Jinja is needed for the page: pip install 'covid-ct-map[evaluation]'") from error


@contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """Give a folder to write into, which takes its place when the block ends well, and else goes away.

    Raises
    ------
    UsageError
        If there is something of that name already, or it cannot be made.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} is there already: name a new folder")
    try:
        output.absolute().parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=".covid-ct-evaluation-", dir=output.absolute().parent)
    except OSError as error:
        raise UsageError(f"cannot write to {output}: {error.strerror}") from error
    with scratch as folder:
        results = Path(folder, "results")
        results.mkdir(mode=0o755)
        yield results
        results.rename(output)
