"""Baselines from the paper's related work, to compare the classifier with."""
