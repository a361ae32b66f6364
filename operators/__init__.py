"""The nodes of the clinical graph: each a thin MONAI Deploy operator over a pure function."""
