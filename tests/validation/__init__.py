"""Validators and readers from outside this project, over the results of a run: ``python -m tests.validation``."""
