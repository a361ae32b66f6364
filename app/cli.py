"""The command line. Nothing heavy is imported before it is needed: ``--help`` answers at once."""

from __future__ import annotations

import _thread
import argparse
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from app.arguments import add_assignments, add_upside_down, count, models_folder
from app.console import quieten_unless_debugging, tell, trace
from app.evaluation.commands import add_evaluate_arguments
from app.gateway.commands import add_fetch_arguments, add_gateway_arguments
from app.outcome import ExitStatus, Interrupted, UsageError, verdict
from app.package.commands import add_package_commands
from app.publish import tidier
from app.scratch import temporary_scratch
from app.supervision import STOPPING, leave, supervised
from app.training.commands import add_ablation_arguments, add_train_arguments, need_training_packages
from operators.software import NAME, RESEARCH_NOTICE, VERSION

_ROOT = Path(__file__).resolve().parent.parent
_LOOK = 0.1
"""Seconds between two looks at the signals that have come."""
_WAKING = signal.SIGURG
"""Ends whatever the main thread waits for, so that it calls the handlers of the signals before it waits on. Nobody else
sends it, and where it has no handler, as in a process that was started meanwhile, it does nothing."""


def entry() -> int:
    """Do what the arguments of this process ask for, a run in a child process; return the exit status."""
    arguments = _parse(sys.argv[1:])
    if arguments.command is not _run or not arguments.output:
        return _execute(arguments)
    try:
        return supervised(lambda: _execute(arguments), tidier(Path(arguments.output)))
    except OSError as error:  # no further process can be had
        tell(verdict(error)[1])
        return ExitStatus.FAILED


def main(argv: Sequence[str]) -> int:
    """Do what the arguments ask for in this process, and return its exit status.

    Parameters
    ----------
    argv : sequence of str
        Arguments without the program.
    """
    return _execute(_parse(argv))


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    return _parser().parse_args(_with_default_command(list(argv)))


def _execute(arguments: argparse.Namespace) -> int:
    quieten_unless_debugging()
    try:
        with _interruptible(), nullcontext() if arguments.command is _run else temporary_scratch():
            arguments.command(arguments)
    except Interrupted as interrupt:
        tell("interrupted")
        leave(interrupt.exit_status)  # the threads of the graph cannot be stopped
    except Exception as error:  # the last resort: one line instead of a traceback, which may quote headers
        trace(error)
        status, line = verdict(error)
        tell(line)
        return status
    return ExitStatus.OK


class _Parser(argparse.ArgumentParser):
    """Answers wrong usage with one line and our exit status."""

    def error(self, message: str) -> NoReturn:
        self.exit(ExitStatus.USAGE, f"error: {message}; see {self.prog} --help\n")


def _with_default_command(argv: list[str]) -> list[str]:
    """``run`` is meant where the first argument is an option, as in ``python -m app -i IN -o OUT``."""
    if argv and (not argv[0].startswith("-") or argv[0] in ("-h", "--help")):
        return argv
    return ["run", *argv]


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="covid-ct",
        description=f"Explainable COVID-19 findings from a chest CT series. {RESEARCH_NOTICE}",
        epilog="Without a command, run is meant: python -m app -i DICOM_FOLDER -o OUT",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_run(commands.add_parser("run", help="read a DICOM folder, write report, segmentation and overlays"))
    inspect = commands.add_parser("inspect", help="say which series of a folder would be read, and why not the others")
    inspect.add_argument("folder", metavar="FOLDER", type=Path, help="folder of DICOM studies")
    _add_config(inspect)
    inspect.set_defaults(command=_inspect)
    phantom = commands.add_parser("phantom", help="write a synthetic chest CT series with lesions")
    phantom.add_argument("output", metavar="OUT", type=Path, help="folder for the DICOM series and its truth")
    phantom.add_argument("--seed", type=count(0, 2**31), default=0, help="another seed, another phantom (default 0)")
    phantom.add_argument("--cohort", type=int, metavar="N", help="write a cohort of N patients instead, to train on")
    phantom.add_argument(
        "--bodies",
        type=Path,
        nargs="+",
        metavar="CT",
        help="with --cohort: put the lesions into these CTs without disease, folders of DICOM or NIfTI files",
    )
    phantom.add_argument(
        "--varied",
        action="store_true",
        help="with --bodies: vary the kernel, the thickness of the slices and the noise of each study",
    )
    phantom.add_argument(
        "--coarse", action="store_true", help="voxels of 6 x 2.8 x 2.8 mm instead of 3 x 1.4 x 1.4, to try things out"
    )
    phantom.add_argument(
        "--kinds",
        nargs="+",
        choices=("healthy", "lobar", "bronchopneumonia", "bronchiolitis", "aspiration", "oedema", "covid"),
        metavar="KIND",
        help="with --cohort: these kinds of patients alone, of "
        "healthy, lobar, bronchopneumonia, bronchiolitis, aspiration, oedema and, as the positive ones, covid",
    )
    phantom.set_defaults(command=_phantom)
    cohort = commands.add_parser("cohort", help="check the table of a cohort, say what it holds, and divide it")
    cohort.add_argument("folder", metavar="FOLDER", type=Path, help="folder with cohort.csv")
    cohort.add_argument(
        "--split",
        type=float,
        nargs=3,
        metavar=("TRAIN", "VALIDATION", "TEST"),
        help="divide the patients in these proportions, and write it into the table",
    )
    cohort.add_argument(
        "--draw-lungs",
        action="store_true",
        help="make masks of the lungs for studies without one, by thresholds and morphology: look at them",
    )
    cohort.add_argument(
        "--from-slices",
        type=Path,
        metavar="FILE",
        help="make the cohort, in a new folder, from an NPZ file of annotated slices, see docs/evaluation.md",
    )
    add_upside_down(cohort, "--from-slices")
    cohort.add_argument("--seed", type=count(0, 2**31), default=0, help="another seed, other splits (default 0)")
    cohort.set_defaults(command=_cohort)
    picture = commands.add_parser("picture", help="turn a secondary capture into a PNG file")
    picture.add_argument("source", metavar="FILE", type=Path, help="DICOM file of the folder sc/")
    picture.add_argument("target", metavar="PNG", type=Path, help="picture to write")
    picture.set_defaults(command=_picture)
    add_train_arguments(commands.add_parser("train", help="train a model on a hospital's or a public cohort"))
    add_ablation_arguments(
        commands.add_parser("ablation", help="train and compare the rows of the paper's ablation, and baselines")
    )
    add_evaluate_arguments(
        commands.add_parser("evaluate", help="judge explanations or predictions on data whose truth is known")
    )
    add_gateway_arguments(
        commands.add_parser("gateway", help="receive studies from a PACS or scanner, send it the results"),
        models_folder,
        _cache,
    )
    add_fetch_arguments(commands.add_parser("fetch", help="have a study of a PACS come to the gateway"))
    add_package_commands(commands, _add_config, models_folder)
    version = commands.add_parser("version", help="print name and version")
    version.set_defaults(command=_version)
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    environment = os.environ.get
    parser.add_argument(
        "-i",
        "--input",
        metavar="FOLDER",
        default=environment("HOLOSCAN_INPUT_PATH"),
        help="folder that holds CT studies",
    )
    parser.add_argument(
        "-o", "--output", metavar="OUT", default=environment("HOLOSCAN_OUTPUT_PATH"), help="folder for the results"
    )
    parser.add_argument(
        "-m",
        "--model",
        metavar="FOLDER",
        default=models_folder(),
        help="folder of the models (default: those of this installation)",
    )
    parser.add_argument(
        "--cache",
        metavar="FOLDER",
        help="where the networks are kept as they were converted for this computer (default: the user's cache folder)",
    )
    parser.add_argument(
        "-w",
        "--workdir",
        metavar="FOLDER",
        help="folder for temporary files (default: HOLOSCAN_WORKDIR if it can be written, else that of the system)",
    )
    add_assignments(parser, "change a setting; repeatable")
    _add_config(parser)
    parser.epilog = (
        "The environment variables HOLOSCAN_INPUT_PATH, HOLOSCAN_OUTPUT_PATH and HOLOSCAN_MODEL_PATH "
        "stand in for arguments not given. Exit status: 0 results written, 64 usage, 65 input refused, 70 our failure."
    )
    parser.set_defaults(command=_run)


def _add_config(parser: argparse.ArgumentParser) -> None:
    own = _ROOT / "app.yaml"
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        type=Path,
        default=os.environ.get("HOLOSCAN_CONFIG_PATH") or (own if own.exists() else None),
        help="YAML file that says which series to read (default: app.yaml of this installation, where it has one)",
    )


def _run(arguments: argparse.Namespace) -> None:
    from app.settings import load_rules, load_settings
    from app.study import Request, run_folder

    _choose_work_folder(arguments.workdir)
    if not arguments.input:
        raise UsageError("no input folder: give -i FOLDER or set HOLOSCAN_INPUT_PATH")
    if not arguments.output:
        raise UsageError("no output folder: give -o OUT or set HOLOSCAN_OUTPUT_PATH")
    request = Request(
        input=_folder(arguments.input, "input folder", os.R_OK | os.X_OK),
        output=Path(arguments.output).absolute(),
        models=Path(arguments.model).absolute(),
        settings=load_settings(arguments.assignments),
        rules=load_rules(arguments.config),
        cache=_cache(arguments.cache),
    )
    results = run_folder(request, tell)
    if len(results) == 1:
        tell(f"{results[0].message}; {len(results[0].files)} files and result.json in {request.output}")
    else:
        tell(f"{len(results)} studies processed; a folder for each in {request.output}")
    with suppress(OSError):  # nobody may listen, the results are there
        print(request.output, flush=True)  # for scripts


def _cache(given: str | None) -> Path | None:
    """Return the folder for what can be made again: the one asked for, or that of the user, who may have none."""
    if given:
        folder = Path(given).absolute()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot make the cache folder {given}: {error.strerror}") from error
        return folder
    with suppress(RuntimeError):  # a user without a home folder
        stated = Path(os.environ.get("XDG_CACHE_HOME", ""))
        return (stated if stated.is_absolute() else Path.home() / ".cache") / NAME
    return None


def _choose_work_folder(given: str | None) -> None:
    mode = os.R_OK | os.W_OK | os.X_OK
    if given:
        tempfile.tempdir = str(_folder(given, "work folder", mode))
    # A MONAI Application Package states the variable even where its root is read-only.
    elif os.access(stated := os.environ.get("HOLOSCAN_WORKDIR", ""), mode):
        tempfile.tempdir = stated


def _inspect(arguments: argparse.Namespace) -> None:
    folder = _folder(arguments.folder, "folder", os.R_OK | os.X_OK)
    from app.inspection import inspect_folder
    from app.settings import load_rules, load_settings

    print(inspect_folder(folder, load_rules(arguments.config), load_settings()))


def _cohort(arguments: argparse.Namespace) -> None:
    from app.cohort.splits import split_table
    from app.cohort.summary import summarise
    from app.cohort.table import TABLE, inspect_cohort, lone_classes

    if arguments.draw_lungs or arguments.from_slices is not None:
        need_training_packages()
    if arguments.from_slices is not None:
        if arguments.draw_lungs or arguments.split is not None:
            raise UsageError("--from-slices makes a cohort with its own masks of the lungs: run again to divide it")
        from app.cohort.slices import read_slices, turned_over, write_slices_cohort

        slices = turned_over(read_slices(arguments.from_slices), arguments.upside_down or ())
        write_slices_cohort(arguments.folder, slices, tell)
        print(arguments.folder)
        return
    if arguments.upside_down:
        raise UsageError("--upside-down says how the slices of --from-slices lie")
    studies, problems = inspect_cohort(arguments.folder)
    for problem in problems:
        tell(f"{TABLE}: {problem}")
    if problems:
        raise UsageError(f"{arguments.folder / TABLE} has {len(problems)} problem(s)")
    for lone in lone_classes(studies):
        tell(f"{TABLE}: {lone}: no classifier can be trained or judged on it alone")
    if arguments.draw_lungs:
        from app.cohort.lung_masks import add_lung_masks

        studies = add_lung_masks(arguments.folder, studies, tell)
    if arguments.split is not None:
        studies = split_table(arguments.folder, studies, arguments.split, arguments.seed)
    print(summarise(studies))


def _phantom(arguments: argparse.Namespace) -> None:
    from app.phantom import COARSE_MM, SPACING_MM, write_phantom
    from app.phantom.disease import ALL, both_labels

    made, spacing = arguments.output, COARSE_MM if arguments.coarse else SPACING_MM
    if arguments.cohort is not None:
        need_training_packages()
    if arguments.varied and arguments.bodies is None:
        raise UsageError("--varied needs --bodies")
    if arguments.kinds is not None:
        if arguments.cohort is None:
            raise UsageError("--kinds needs --cohort N")
        if not both_labels(arguments.kinds):
            raise UsageError("--kinds needs covid, and one kind besides")
    kinds = arguments.kinds or ALL
    if arguments.bodies is not None:
        from app.phantom.bodies import write_diseased

        if arguments.cohort is None or arguments.coarse:
            raise UsageError("--bodies needs --cohort N, and takes the voxels of the CTs as they are")
        write_diseased(
            arguments.output,
            arguments.bodies,
            arguments.cohort,
            arguments.seed,
            varied=arguments.varied,
            kinds=kinds,
            tell=tell,
        )
    elif arguments.cohort is not None:
        from app.phantom.cohort import write_cohort

        write_cohort(arguments.output, arguments.cohort, arguments.seed, spacing, tell, kinds=kinds)
    else:
        try:
            arguments.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot make the folder {arguments.output}: {error.strerror}") from error
        tell("Making the phantom ...")
        made = write_phantom(arguments.output, seed=arguments.seed, spacing=spacing)
    print(made)


def _picture(arguments: argparse.Namespace) -> None:
    from app.picture import write_picture

    write_picture(arguments.source, arguments.target)


def _version(arguments: argparse.Namespace) -> None:
    print(f"{NAME} {VERSION}")


def _folder(path: str, what: str, mode: int) -> Path:
    folder = Path(path).absolute()
    if not folder.exists():
        raise UsageError(f"the {what} {path} does not exist")
    if not folder.is_dir():
        raise UsageError(f"the {what} {path} is not a folder")
    if not os.access(folder, mode):
        raise UsageError(f"no permission to use the {what} {path}")
    return folder


@contextmanager
def _interruptible() -> Iterator[None]:
    """Turn :data:`STOPPING` signals into :class:`Interrupted`, once, in the main thread.

    Holoscan installs handlers of its own, which end the process in their own way and may come first. So every thread
    from here on blocks them, and only :func:`_watch` receives them. After the first they stay blocked: the
    process ends, and a second one, as a terminal and a parent both send it, must not disturb that. So it is, too, where
    a command has handlers of its own for them.
    """
    stop = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        stop.set()
        raise Interrupted(number)

    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    previous = {number: signal.signal(number, interrupt) for number in STOPPING}
    previous[_WAKING] = signal.signal(_WAKING, lambda *_: stop.set())
    threading.Thread(target=_watch, args=(stop, threading.get_ident()), name="signals", daemon=True).start()
    try:
        yield
    finally:
        if not stop.is_set():
            stop.set()
            for number, handler in previous.items():
                signal.signal(number, handler)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _watch(stop: threading.Event, main_thread: int) -> None:
    """Wait for a signal and have its Python handler called in the main thread, once, whatever that waits for.

    Not by ``signal.sigtimedwait``: of a process that was stopped and goes on again, it gives a signal that nobody sent.
    """
    while not (pending := signal.sigpending() & set(STOPPING)):
        if stop.wait(_LOOK):
            return
    _thread.interrupt_main(signal.Signals(signal.sigwait(pending)))
    while not stop.is_set():  # it may have been about to wait, and not have waited yet
        signal.pthread_kill(main_thread, _WAKING)
        stop.wait(_LOOK)
