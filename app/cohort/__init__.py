"""A hospital's own data: the table of a cohort, and its splits."""
