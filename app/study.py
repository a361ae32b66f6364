"""From an input folder to published results, one study at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from pydicom.uid import UID

from app.console import trace
from app.outcome import RunFailed, UsageError, verdict
from app.publish import RESULT_FOLDERS, Staging, flatten
from app.scratch import provide_scratch
from app.settings import Settings
from operators.journal import Journal
from operators.refusal import InputRefused
from operators.software import NAME, RESEARCH_NOTICE, VERSION

if TYPE_CHECKING:
    from app.application import Models
    from app.result import CompletedResult, StudyOutcome
    from models.runtime import Runtime
    from operators.selection_rules import SelectionRules
    from operators.studies import Study


class SomeRefused(InputRefused):
    """Some studies of a folder were refused; each of them says why in its own ``result.json``."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to process, and where.

    Parameters
    ----------
    input : Path
        Folder of CT studies.
    output : Path
        Folder for the results; made where absent.
    models : Path
        Holds the model folders ``lungs``, ``lesions``, ``involvement`` and ``classifier``.
    settings : Settings
        Checked settings.
    rules : SelectionRules
        Which series to read.
    cache : Path, optional
        Folder for what OpenVINO makes of the networks.
    """

    input: Path
    output: Path
    models: Path
    settings: Settings
    rules: SelectionRules
    cache: Path | None = None

    def __post_init__(self) -> None:
        source = self.input.resolve()
        if any(source.is_relative_to(self.output.resolve() / name) for name in RESULT_FOLDERS):
            raise UsageError(f"the results would replace the input folder {self.input}; give another output folder")


def run_folder(request: Request, tell: Callable[[str], None]) -> list[CompletedResult]:
    """Process the studies of a folder and publish all results of each, or only the reason why it was refused.

    The results of a single study go to the output folder itself. Where several studies hold CT images, those of
    each go to a folder of its own there, named by the Study Instance UID, and ``result.json`` lists them.

    Parameters
    ----------
    request : Request
        What to process.
    tell : callable
        Receives progress, one line at a time.

    Raises
    ------
    UsageError
        If the output folder cannot be used; nothing is written.
    InputRefused
        If the folder or any of its studies cannot be processed; ``result.json`` says why.
    RunFailed
        If a model is missing or altered, and nothing is written; or one of several studies failed, of which nothing is
        written, and ``result.json`` says which.
    """
    with Staging(request.output) as staging:
        tell(f"{NAME} {VERSION}. {RESEARCH_NOTICE}")
        provide_scratch(staging.scratch)
        with _refusal_published(staging, request.settings):
            studies = _studies(request)
            if len(studies) == 1:
                return [_publish(staging, request, studies[0], tell)]
            return _run_each(staging, request, studies, tell)


@contextmanager
def _refusal_published(staging: Staging, settings: Settings) -> Iterator[None]:
    """Publish the reason of a refusal in the place of results."""
    from app.result import RefusedResult  # takes seconds: only after the cheap checks

    try:
        yield
    except SomeRefused:
        raise
    except InputRefused as refusal:
        staging.discard()
        RefusedResult.of(refusal, settings).write(staging.folder)
        staging.publish()
        raise


def _studies(request: Request) -> list[Study]:
    """Return the studies to process: all that hold CT images, or one."""
    from operators.dicom_folder import scan_folder
    from operators.series_loader import the_study
    from operators.studies import group_studies

    studies = group_studies(scan_folder(request.input))
    with_ct = [study for study in studies if study.has_ct]
    # A flat folder holds one study: in folders of their own, the objects of others would not be seen.
    if len(with_ct) > 1 and request.settings.studies == "each" and not request.settings.flat:
        return with_ct
    return [the_study(studies)]


def _publish(staging: Staging, request: Request, study: Study, tell: Callable[[str], None]) -> CompletedResult:
    result = _process(request, study, staging.folder, Journal(tell))
    result.write(staging.folder)
    staging.publish()
    return result


def _run_each(
    staging: Staging, request: Request, studies: Sequence[Study], tell: Callable[[str], None]
) -> list[CompletedResult]:
    """Process several studies one after the other, each into its own folder; then publish the list of them."""
    from app.result import StudyOutcome

    results: list[CompletedResult] = []
    names = [study.uid if UID(study.uid).is_valid else f"study-{k}" for k, study in enumerate(studies, start=1)]
    outcomes = [StudyOutcome(folder=name, status="failed") for name in names]
    _models(request.models, _runtime(request.settings, request.cache))  # without what all need, nothing is begun
    try:
        staging.drop_earlier()  # a list would not be true of what is replaced before the next one
        for index, (study, name) in enumerate(zip(studies, names, strict=True)):
            tell(f"Study {index + 1} of {len(studies)} ...")
            try:
                with Staging(request.output / name) as own, _refusal_published(own, request.settings):
                    results.append(_publish(own, request, study, tell))
                outcomes[index] = StudyOutcome(folder=name, status="completed")
                tell(f"{results[-1].message}; in {name}")
            except InputRefused as refusal:
                outcomes[index] = StudyOutcome(folder=name, status="refused", reason_codes=[refusal.code])
                tell(f"refused: {refusal.code}: {refusal.message}")
            except Exception as error:  # the others may not have what this one has
                trace(error)
                tell(verdict(error)[1])
    except BaseException:  # a signal
        with suppress(OSError, UsageError):
            _publish_list(staging, outcomes, request.settings)
        raise
    _publish_list(staging, outcomes, request.settings)
    failed = sum(outcome.status == "failed" for outcome in outcomes)
    if failed:
        raise RunFailed(f"{failed} of {len(studies)} studies failed; the lines above say why.")
    refused = [outcome for outcome in outcomes if outcome.status == "refused"]
    if refused:
        message = f"{len(refused)} of {len(studies)} studies were refused; the folder of each says why."
        raise SomeRefused(refused[0].reason_codes[0], message)
    return results


def _publish_list(staging: Staging, outcomes: Sequence[StudyOutcome], settings: Settings) -> None:
    from app.result import FolderResult

    FolderResult.of(outcomes, settings).write(staging.folder)
    staging.publish()


@lru_cache(maxsize=1)
def _models(folder: Path, runtime: Runtime) -> Models:
    """Load the models once for all studies of a process."""
    from app.application import Models

    return Models.load(folder, runtime)


def _runtime(settings: Settings, cache: Path | None) -> Runtime:
    """Choose where the networks run.

    Raises
    ------
    UsageError
        If it cannot be had on this machine.
    """
    from models.runtime import RuntimeUnavailable, choose
    from models.threads import use_granted_cores

    use_granted_cores()
    try:
        return choose(settings.runtime, settings.precision, cache)
    except RuntimeUnavailable as error:
        raise UsageError(str(error)) from error


def _process(request: Request, study: Study, folder: Path, journal: Journal) -> CompletedResult:
    from app.application import CovidCTApplication
    from app.result import CompletedResult
    from app.verification import verify_objects

    runtime = _runtime(request.settings, request.cache)
    models = _models(request.models, runtime)
    # what was done, not what was left open: results that may differ by a rounding have other UIDs
    layout = "flat" if request.settings.flat else "folders"
    done = {"runtime": runtime.name, "precision": runtime.precision, "layout": layout}
    settings = request.settings.model_copy(update=done)
    application = CovidCTApplication(study, request.rules, folder, models, settings, journal)
    findings = application.process()
    verify_objects(folder, findings.volume, [name for name in RESULT_FOLDERS if name != "pdf" or settings.pdf])
    if settings.flat:
        flatten(folder)
    return CompletedResult.of(
        *findings,
        models=models.records,
        settings=settings,
        seconds=journal.seconds,
        folder=folder,
    )
