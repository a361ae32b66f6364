"""Benchmarks: ratios measured in one run. ``python -m tests.bench`` runs them all."""
