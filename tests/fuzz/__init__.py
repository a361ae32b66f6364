"""Seeded fuzzing of the series loader: whatever lies in a folder, a volume or a refusal comes of it."""
