"""``covid-ct evaluate``: how good the parts of the application are, on data whose truth is known."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from app.arguments import add_upside_down, count, models_folder
from app.console import tell
from app.outcome import UsageError

if TYPE_CHECKING:
    from app.cohort.table import CohortStudy
    from app.evaluation.predictions import Prediction, Refused


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command; nothing heavy is imported."""
    parts = parser.add_subparsers(metavar="WHAT", required=True)
    explanation = parts.add_parser("explanation", help="whether the heatmaps point at lesions, beside other methods")
    add = explanation.add_argument
    add("-o", "--output", type=Path, required=True, help="new folder for tables and pictures")
    add("-m", "--model", type=Path, default=models_folder(), help="folder of the models")
    add("--phantoms", type=count(0, 100), default=4, metavar="N", help="synthetic studies (default 4)")
    add("--slices", type=Path, metavar="FILE", help="NPZ file of annotated slices, see docs/evaluation.md")
    add_upside_down(explanation, "--slices")
    add("--studies", type=count(1, 100), default=4, metavar="N", help="studies of that file (default 4)")
    add("--in-plane", type=count(32, 1024), metavar="N", help="size of the phantoms (default: what it learned from)")
    explanation.set_defaults(command=evaluate_explanation)
    classification = parts.add_parser("classification", help="how well positive is told from negative, with intervals")
    add = classification.add_argument
    predicted = classification.add_mutually_exclusive_group(required=True)
    predicted.add_argument("--predictions", type=Path, metavar="FILE", help="CSV file, see docs/evaluation.md")
    predicted.add_argument(
        "--cohort", type=Path, metavar="FOLDER", help="cohort with splits to predict, see docs/training.md"
    )
    add("-m", "--model", type=Path, default=models_folder(), help="folder of the models that predict a cohort")
    add("--cache", type=Path, metavar="FOLDER", help="for the prepared studies of a cohort")
    add("--prepare-workers", type=count(1, 256), metavar="N", help="processes that prepare them (default: all cores)")
    add("-o", "--output", type=Path, required=True, help="new folder for tables, pictures and a page")
    add_bootstrap_arguments(classification)
    classification.set_defaults(command=evaluate_classification)
    segmentation = parts.add_parser("segmentation", help="how well lungs and lesions are found, with intervals")
    add = segmentation.add_argument
    add("--cohort", type=Path, required=True, metavar="FOLDER", help="cohort with masks, see docs/training.md")
    source = segmentation.add_mutually_exclusive_group()
    source.add_argument(
        "--predictions", type=Path, metavar="FOLDER", help="STUDY_lungs.nii.gz and STUDY_lesions.nii.gz"
    )
    source.add_argument("-m", "--model", type=Path, default=models_folder(), help="folder of the models to run instead")
    add("--in-given-lungs", action="store_true", help="look for lesions in the lungs of the cohort's masks")
    add("-o", "--output", type=Path, required=True, help="new folder for tables, a picture and a page")
    add_bootstrap_arguments(segmentation)
    _add_only(segmentation)
    segmentation.set_defaults(command=evaluate_segmentation)
    robustness = parts.add_parser("robustness", help="what other slices, kernels, offsets and noise change")
    add = robustness.add_argument
    add("--cohort", type=Path, required=True, metavar="FOLDER", help="cohort with masks of the lungs")
    add("-m", "--model", type=Path, default=models_folder(), help="folder of the models; of the lungs alone, or more")
    add("-o", "--output", type=Path, required=True, help="new folder for tables and pictures")
    add("--seed", type=count(0, 2**31), default=0, help="of the noise (default 0)")
    _add_only(robustness)
    robustness.set_defaults(command=evaluate_robustness)
    compute = parts.add_parser("compute", help="what each model costs here, beside the paper's figures")
    add = compute.add_argument
    add("-i", "--input", type=Path, metavar="FOLDER", help="folder with a chest CT (default: a phantom)")
    add("-m", "--model", type=Path, default=models_folder(), help="folder of the models")
    add("-o", "--output", type=Path, required=True, help="new folder for the table")
    compute.set_defaults(command=evaluate_compute)


def _add_only(parser: argparse.ArgumentParser) -> None:
    default = "those for testing, or all without splits"
    parser.add_argument("--only", nargs="+", metavar="PATIENT", help=f"judge on these patients (default: {default})")


def add_bootstrap_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the bootstrap."""
    add = parser.add_argument
    add("--replicates", type=count(100, 100_000), default=2000, metavar="N", help="of the bootstrap (default 2000)")
    add("--seed", type=count(0, 2**31), default=0, help="of the bootstrap (default 0)")


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
        raise UsageError("captum is needed to compare with: pip install -c constraints.txt '.[evaluation]'") from error
    from app.cohort.slices import read_slices, turned_over
    from app.evaluation.explanation_cases import phantom_cases, slice_cases
    from app.evaluation.explanation_quality import evaluate
    from app.evaluation.explanation_report import write_report
    from models.classifier.network import Classifier
    from models.record import ModelUnavailable
    from models.store import load_network

    output = arguments.output
    try:
        network, _ = load_network(arguments.model / "classifier", Classifier)
    except ModelUnavailable as error:
        raise UsageError(str(error)) from error
    if network.encoder.side_branch is None:
        raise UsageError("the classifier has no side branch: there is nothing to explain on the mask")
    if arguments.slices is None and arguments.upside_down:
        raise UsageError("--upside-down says how the slices of --slices lie")
    slices = (
        None if arguments.slices is None else turned_over(read_slices(arguments.slices), arguments.upside_down or ())
    )
    with new_folder(output) as results:
        in_plane = arguments.in_plane or network.in_plane
        cases = [phantom_cases(arguments.phantoms, in_plane)]
        if slices is not None:
            cases.append(slice_cases(slices, arguments.studies, in_plane))
        evaluation = evaluate(network, (case for source in cases for case in source), tell)
        if not evaluation.scores:
            raise UsageError("there is no study with lesions and healthy lung to evaluate on")
        write_report(evaluation, results)
    tell(f"written to {output}")


def evaluate_classification(arguments: argparse.Namespace) -> None:
    """Judge predictions and write ``classification.json``, ``classification.csv``, ``index.html`` and pictures.

    Predictions made here are written too, as ``predictions.csv``.

    Raises
    ------
    UsageError
        If packages are missing, the predictions are wrong or lack a class, cohort or models cannot be used, or the
        folder cannot be written.
    RunFailed
        If the cache cannot be written.
    """
    need_evaluation_packages()
    from app.evaluation.predictions import read_predictions

    with new_folder(arguments.output) as folder:
        made = arguments.predictions is None
        predictions, refused = _predictions(arguments) if made else (read_predictions(arguments.predictions), ())
        chance = {"replicates": arguments.replicates, "seed": arguments.seed}
        write_judgement(predictions, folder, made=made, refused=refused, **chance)
    print(arguments.output / "index.html")


def _predictions(arguments: argparse.Namespace) -> tuple[Sequence[Prediction], Sequence[Refused]]:
    """Predict the cohort that is asked for, but for what the system refuses of it."""
    from app.cohort.table import read_cohort
    from app.evaluation.cohort_predictions import predict_cohort

    if arguments.cache is None:
        raise UsageError("--cohort needs --cache FOLDER for the prepared studies")
    studies = read_cohort(arguments.cohort)
    return predict_cohort(studies, arguments.model, arguments.cache, workers=arguments.prepare_workers, tell=tell)


def write_judgement(
    predictions: Sequence[Prediction],
    folder: Path,
    *,
    made: bool,
    replicates: int,
    seed: int,
    pairs: Sequence[tuple[str, str]] | None = None,
    refused: Sequence[Refused] = (),
) -> None:
    """Judge predictions, write all there is to say of them, and tell the most important.

    Parameters
    ----------
    predictions : sequence of Prediction
    folder : Path
        Must exist.
    made : bool
        Whether they were made here, and are to be written.
    replicates, seed, pairs, refused
        As for :func:`app.evaluation.protocol.judge`.

    Raises
    ------
    UsageError
        If they lack a class.
    """
    from app.evaluation.predictions import write_predictions
    from app.evaluation.protocol import judge

    try:
        results = judge(predictions, folder, pairs=pairs, refused=refused, replicates=replicates, seed=seed)
    except ValueError as error:
        raise UsageError(f"the predictions cannot be judged: {error}") from error
    if made:
        write_predictions(folder / "predictions.csv", predictions)
    for result in results:
        tell(f"{result.model}: AUC {result.auc.text}, false positives at 95 % sensitivity {result.fpr_at_95.text}")
    if refused:
        tell(f"test studies that the system refuses, left out of these figures: {len(refused)}")


def evaluate_segmentation(arguments: argparse.Namespace) -> None:
    """Judge masks and write ``segmentation.json``, ``segmentation.csv``, ``index.html`` and pictures.

    The studies of the patients who are asked for are judged; else of a cohort with splits those for testing, or all.

    Raises
    ------
    UsageError
        If packages are missing, cohort, masks or models cannot be used, a model has learned from a patient whom it is
        to be judged on, or the folder cannot be written.
    """
    need_evaluation_packages()
    from app.evaluation.segmentation import from_folder, score_cohort
    from app.evaluation.segmentation_report import DifferencesIn, write_segmentation

    studies = _judged(arguments)
    if arguments.predictions is not None:
        if arguments.in_given_lungs:
            raise UsageError("--in-given-lungs is for models: masks are judged as they are")
        segment, nothing = from_folder(arguments.predictions, studies), None
    else:
        from app.cohort.known_patients import refuse_known_patients
        from app.evaluation.networks import Networks
        from app.evaluation.segmentation_model import from_models, nothing_of

        networks = Networks.load(arguments.model, lungs=not arguments.in_given_lungs)
        refuse_known_patients(arguments.model, networks.segmenting, studies)
        segment, nothing = from_models(arguments.model, networks), nothing_of(networks)
    with new_folder(arguments.output) as folder:
        scores = score_cohort(studies, segment, tell, DifferencesIn(folder), nothing)
        chance = {"replicates": arguments.replicates, "seed": arguments.seed}
        write_segmentation(scores, folder, in_given_lungs=arguments.in_given_lungs, **chance)
    print(arguments.output / "index.html")


def _judged(arguments: argparse.Namespace) -> Sequence[CohortStudy]:
    """Return the studies of a cohort that models are judged on.

    None of them counts as one for validation: nothing is chosen on them here, as the threshold of a classifier is.
    """
    from app.cohort.table import part, read_cohort

    studies = read_cohort(arguments.cohort, classes=False)
    if arguments.only:
        studies = part(studies, arguments.only)[0]
    else:
        studies = tuple(study for study in studies if study.split in (None, "test"))
    return [replace(study, split=None) for study in studies]


def evaluate_robustness(arguments: argparse.Namespace) -> None:
    """Measure studies at other image qualities and write ``robustness.json``, ``robustness.md`` and pictures.

    The studies of the patients who are asked for are measured; else of a cohort with splits those for testing, or all.

    Raises
    ------
    UsageError
        If packages are missing, cohort, masks or models cannot be used, a model has learned from a patient whom it is
        to be judged on, or the folder cannot be written.
    """
    need_evaluation_packages()
    from app.cohort.known_patients import refuse_known_patients
    from app.evaluation.networks import Networks
    from app.evaluation.robustness import try_qualities
    from app.evaluation.robustness_report import write_robustness

    studies = _judged(arguments)
    networks = Networks.load(arguments.model)
    refuse_known_patients(arguments.model, networks.tasks, studies)
    with new_folder(arguments.output) as folder:
        write_robustness(try_qualities(studies, networks, arguments.seed, tell), folder)
    print(arguments.output / "robustness.md")


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
    from app.cohort.images import bare_volume
    from app.evaluation.compute import measure_costs, write_costs
    from app.phantom import make_phantom
    from models.runtime import Runtime, choose
    from models.threads import use_granted_cores
    from operators.series_loader import load_ct_series

    use_granted_cores()
    if arguments.input is not None:
        volume = load_ct_series(arguments.input)
    else:
        phantom = make_phantom()
        volume = bare_volume(phantom.hu, phantom.spacing)
    with new_folder(arguments.output) as folder:
        runtime = choose()
        models, plain = (Models.load(arguments.model, each) for each in (runtime, Runtime("torch")))
        costs = measure_costs(volume, models, plain, tell=tell)
        write_costs(costs, volume, runtime, folder)
    print((arguments.output / "compute.md").read_text("utf-8"), end="")


def need_evaluation_packages() -> None:
    """Make sure that what only evaluation needs is installed: to write pages, and to read masks.

    Raises
    ------
    UsageError
        If it is not.
    """
    if not all(find_spec(package) for package in ("jinja2", "nibabel")):
        raise UsageError("more packages are needed: pip install -c constraints.txt '.[evaluation]'")


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
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
