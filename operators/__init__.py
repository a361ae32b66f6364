"""The nodes of the clinical graph: each a thin MONAI Deploy operator over a pure function."""

import models  # noqa: F401 - loads what MONAI Deploy cannot be imported without
