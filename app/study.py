"""One study from the input folder to published results."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from app.outcome import RunFailed, UsageError
from app.publish import RESULT_FOLDERS, Staging
from app.settings import Settings
from operators.journal import Journal
from operators.refusal import InputRefused
from operators.software import NAME, RESEARCH_NOTICE, VERSION

if TYPE_CHECKING:
    from app.result import CompletedResult


@dataclass(frozen=True, slots=True)
class Request:
    """What to process, and where.

    Parameters
    ----------
    input : Path
        Folder of one CT study.
    output : Path
        Folder for the results; made where absent.
    models : Path
        Holds the model folders ``lungs``, ``lesions``, ``involvement`` and ``classifier``.
    settings : Settings
        Checked settings.
    """

    input: Path
    output: Path
    models: Path
    settings: Settings

    def __post_init__(self) -> None:
        source = self.input.resolve()
        if any(source.is_relative_to(self.output.resolve() / name) for name in RESULT_FOLDERS):
            raise UsageError(f"the results would replace the input folder {self.input}; give another output folder")


def run_study(request: Request, tell: Callable[[str], None]) -> CompletedResult:
    """Process one study and publish all of its results, or only the reason why it was refused.

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
        If the input cannot be processed; ``result.json`` says why.
    RunFailed
        If a model is missing or altered, or a promised output was not written; nothing is written.
    """
    with Staging(request.output) as staging:
        tell(f"{NAME} {VERSION}. {RESEARCH_NOTICE}")
        _provide_scratch(staging.scratch)
        from app.result import RefusedResult  # takes seconds: only after the cheap checks

        try:
            result = _process(request, staging.folder, Journal(tell))
        except InputRefused as refusal:
            staging.discard()
            RefusedResult.of(refusal, request.settings).write(staging.folder)
            staging.publish()
            raise
        result.write(staging.folder)
        staging.publish()
    return result


def _provide_scratch(folder: Path) -> None:
    """Give the libraries ``folder`` for what they insist on writing, where they may write nowhere else.

    So it is in a container with a read-only root, or for a user without a home folder: MONAI imports matplotlib
    and Holoscan imports CuPy, and neither can be imported without a folder for its cache.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        tempfile.tempdir = str(folder)
    if not os.access(os.environ.get("HOME", ""), os.W_OK):
        for name in ("MPLCONFIGDIR", "CUPY_CACHE_DIR"):
            os.environ.setdefault(name, str(folder))


def _process(request: Request, folder: Path, journal: Journal) -> CompletedResult:
    from app.application import CovidCTApplication, Models
    from app.result import CompletedResult
    from models.precision import resolve

    models = Models.load(request.models)
    # what was done, not what was left open: results that may differ by a rounding have other UIDs
    settings = request.settings.model_copy(update={"precision": resolve(request.settings.precision)})
    application = CovidCTApplication(request.input, folder, models, settings, journal)
    volume, measurements, classification = application.process()
    for name in RESULT_FOLDERS:
        if not any((folder / name).glob("*.dcm")):
            raise RunFailed(f"the graph ended without an object in {name}/")
    return CompletedResult.of(
        volume,
        measurements,
        classification,
        models=models.records,
        settings=settings,
        seconds=journal.seconds,
        folder=folder,
    )
