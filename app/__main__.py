"""Runs the application: ``python -m app``, or ``python3 /opt/holoscan/app/`` as in a MONAI Application Package."""

import sys
from pathlib import Path

if not __package__:  # the folder was run: its parent, not the folder itself, is where packages are found
    _folder = Path(__file__).resolve().parent
    sys.path[0] = str(_folder if (_folder / "app").is_dir() else _folder.parent)  # see app.package.tree

from app.cli import entry

if __name__ == "__main__":
    sys.exit(entry())
