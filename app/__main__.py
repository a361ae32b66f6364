"""Runs the application: ``python -m app``, or ``python /opt/holoscan/app`` as in a MONAI Application Package."""

import sys
from pathlib import Path

if not __package__:  # the folder was run: its parent, not the folder itself, is where packages are found
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from app.cli import main

if __name__ == "__main__":
    sys.exit(main())
