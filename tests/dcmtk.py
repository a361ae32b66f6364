"""Programs of dcmtk that pynetdicom has, too, under the same names, where an environment is activated."""

from __future__ import annotations

from pathlib import Path

STORESCU, STORESCP = (Path("/usr/bin") / name for name in ("storescu", "storescp"))
