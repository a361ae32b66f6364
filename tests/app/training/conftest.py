from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from app.cli import main
from app.training.commands import MODELS
from tests.app.training.small import arguments, write_segmentation, write_small_cohort


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors are many times slower in several threads, which wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_cohort(tmp_path_factory.mktemp("data") / "cohort")


@pytest.fixture(scope="session")
def trained(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All five trainings, one after the other, as a person does them."""
    folder = tmp_path_factory.mktemp("trained")
    write_segmentation(folder / "segmentation")
    for model in MODELS:
        assert main(arguments(model, cohort, folder)) == 0
    return folder
