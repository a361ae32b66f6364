"""The commands that concern the package: ``check``, ``show``, ``extract``, ``convert``, ``package`` and ``sbom``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.arguments import count
from app.console import tell

_ROOT = Path(__file__).resolve().parent.parent.parent


def add_package_commands(
    commands: Any, add_config: Callable[[argparse.ArgumentParser], None], models: Callable[[], Path]
) -> None:
    """Add the commands; ``models`` says where the models are where nobody else does."""
    parser = commands.add_parser("check", help="say whether all that a run needs is in place")
    parser.add_argument("-i", "--input", metavar="FOLDER", type=Path, help="also an input folder")
    parser.add_argument(
        "-o", "--output", metavar="OUT", type=Path, help="also a folder for results, which must be there"
    )
    add_config(parser)
    parser.set_defaults(command=lambda arguments: _check(arguments, models()))
    parser = commands.add_parser("show", help="print the manifests of the MONAI Application Package")
    parser.add_argument("which", nargs="?", choices=["app", "pkg"], help="one of them (default: both)")
    add_config(parser)
    parser.set_defaults(command=_show)
    parser = commands.add_parser("extract", help="in a package: copy it out, to /var/run/holoscan/export")
    parser.set_defaults(command=_extract)
    parser = commands.add_parser("convert", help="convert the networks for OpenVINO once, beside them, for all runs")
    parser.add_argument(
        "-m",
        "--model",
        metavar="FOLDER",
        type=Path,
        default=models(),
        help="folder of the models (default: those of this installation)",
    )
    parser.set_defaults(command=_convert)
    parser = commands.add_parser("package", help="in a checkout: write the files of the MONAI Application Package")
    parser.add_argument("output", metavar="OUT", type=Path, help="empty folder that stands for the root of the package")
    parser.add_argument(
        "--gpus", metavar="N", type=count(0, 16), help="GPUs that its manifest asks for (default: as app.yaml says)"
    )
    parser.set_defaults(command=_package)
    parser = commands.add_parser("sbom", help="write what this installation is made of (CycloneDX, SPDX, licences)")
    parser.add_argument("output", metavar="OUT", type=Path, help="folder for the bill of materials")
    parser.set_defaults(command=lambda arguments: _bill(arguments, models()))


def _check(arguments: argparse.Namespace, models: Path) -> None:
    from app.package.check import check

    for line in check(models, arguments.config, arguments.input, arguments.output):
        print(line)


def _show(arguments: argparse.Namespace) -> None:
    from app.package.export import show

    print(show(arguments.which, arguments.config), end="")


def _extract(arguments: argparse.Namespace) -> None:
    from app.package.export import extract

    for folder in extract():
        print(folder)


def _convert(arguments: argparse.Namespace) -> None:
    from app.package.convert import convert

    print(convert(arguments.model.absolute()))


def _package(arguments: argparse.Namespace) -> None:
    from app.package.tree import write_tree

    write_tree(_ROOT, arguments.output.absolute(), arguments.gpus)
    print(arguments.output)


def _bill(arguments: argparse.Namespace, models: Path) -> None:
    from app.outcome import UsageError

    try:
        from app.package.bill import write_bill
    except ModuleNotFoundError as error:
        raise UsageError(f"{error.name} is not installed: pip install -c constraints.txt '.[package]'") from error
    tell(f"{write_bill(models, arguments.output)} parts")
    print(arguments.output)
