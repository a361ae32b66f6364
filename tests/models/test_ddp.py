"""Trainings divided among processes: the same result as in one, and errors that reach the person who waits."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from app.outcome import RunFailed, UsageError
from app.training.configuration import load_training_settings
from app.training.run import Devices, Finish, Training, _train, run_training
from app.training.tasks import TASKS, Prepared
from models.classifier.studies import LESION, LUNG
from models.classifier.training import ClassifierRecipe
from models.training.loop import Trained
from models.training.recipe import Recipe

SMALL: Mapping[str, Mapping[str, object]] = {
    "classifier": {"in_plane": 32, "initial": "random", "epochs": 2, "learning_rate": 1e-3, "slices_per_study": 2},
    "cvae": {"in_plane": 32, "size": 16, "epochs": 2, "batch": 4, "slices_per_study": 3, "clip_norm": 1.0},
    "lungs": {"interior": [3, 6, 3], "epochs": 1, "steps": 2, "averaging": 0.5},
    "involvement": {"patches": 1, "epochs": 1, "steps": 2},
    "lesions": {"patch": [24, 8, 8], "epochs": 1, "steps": 2, "averaging": 0.0},
}
CPU = Devices("cpu", 1)
COMMON = {"batch": 2, "workers": 0, "precision": "float32"}


def write_volume(path: Path, seed: int) -> Path:
    """A lung with lesions of all types, as the preparation writes it."""
    rng = np.random.default_rng(seed)
    z, y, x = np.ogrid[:24, :100, :100]
    lungs = (((z - 12) / 9) ** 2 + ((y - 50) / 24) ** 2 + ((x - 50) / 26) ** 2 < 1).astype(np.uint8)
    lesions = lungs * (1 + (x // 8 + y // 8) % 4).astype(np.uint8) * (rng.random((24, 1, 1)) < 0.7)
    hu = np.where(lungs, -850, 30) + 150 * lesions + rng.normal(0, 30, lungs.shape)
    arrays = {
        "hu": hu.astype(np.int16),
        "lungs": lungs,
        "coverage": 255 * (lungs > 0).astype(np.uint8),
        "lesions": lesions.astype(np.uint8),
    }
    masks = {"lung": lungs > 0, "lesion": lesions > 0, "surface": lungs > 0}
    masks |= {"other_air": lungs > 1, "body": lungs < 1, "beside": lungs > 1}
    masks |= {f"lesion_{kind}": lesions == kind for kind in range(1, 6)}
    points = {f"points_{kind}": np.argwhere(mask)[::11].astype(np.int32) for kind, mask in masks.items()}
    save_arrays({name: np.ascontiguousarray(array) for name, array in (arrays | points).items()}, path)
    return path


def write_study(path: Path, seed: int, *, broken: bool = False) -> Path:
    """Slices whose positives, those of odd seeds, hold a lesion."""
    generator = torch.Generator().manual_seed(seed)
    ct = 0.3 + 0.2 * torch.rand(4, 32, 32, generator=generator)
    labels = torch.full((4, 32, 32), LUNG, dtype=torch.uint8)
    if seed % 2:
        ct[:, 8:20, 8:20] = 0.9
        labels[:, 8:20, 8:20] |= LESION
    ct[0, 0, 0] = torch.nan if broken else 0.0
    save_file({"ct": ct.half(), "labels": labels}, path)
    return path


def training(task: str, folder: Path, states: Path, **changed: object) -> Training:
    """A small training of a model; three studies or volumes to learn from, and three to validate with."""
    kind = TASKS[task]
    assignments = {**COMMON, **SMALL[task], **changed}
    settings = load_training_settings(
        kind.settings,
        kind.recommended,
        assignments=[f"{name}={json.dumps(value)}" for name, value in assignments.items()],
    )
    write = write_volume if kind.spacing is not None else write_study
    if kind.spacing is not None:
        small = {"augment": False, "validation_patches": 3}
        settings = settings.model_validate(settings.model_dump() | small)
    made = tuple(
        Prepared(write(folder / f"{write.__name__}-{number}.safetensors", number), number % 2) for number in range(6)
    )
    return Training(task, settings, made[:3], made[3:], states)


def keep(folder: Path, made: Training, network: nn.Module, trained: Trained, seconds: float) -> None:
    """Finish a training: write what it gave."""
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(weights, folder / f"{made.task}.safetensors")
    (folder / f"{made.task}.json").write_text(json.dumps([trained.history, trained.kept_epoch]), "utf-8")


def train_all(
    others: list[Training], kept: Path, fabric: Fabric, training: Training, finish: Finish, parent: int
) -> None:
    """Train others before the one that was asked for, in the same processes: these take seconds to start."""
    for other in others:
        _train(fabric, other, partial(keep, kept), parent)
    _train(fabric, training, finish, parent)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As the processes have on the machine that divides its cores among them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, states and results."""
    made = tmp_path_factory.mktemp("trainings")
    for name in ("data", "of_one", "of_two", "broken"):
        (made / name).mkdir()
    return made


@pytest.fixture(scope="module")
def failure(folder: Path) -> RunFailed:
    """Train all models in one process, and in two, which end with a training on data that are no numbers."""
    for task in SMALL:
        run_training(training(task, folder / "data", folder / "of_one"), CPU, partial(keep, folder / "of_one"))
    others = [training(task, folder / "data", folder / "of_two") for task in SMALL]
    broken = training("classifier", folder / "broken", folder / "broken")
    write_study(broken.training[2].path, 2, broken=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.training.run._train", partial(train_all, others, folder / "of_two"))
        with pytest.raises(RunFailed) as caught:
            run_training(broken, Devices("cpu", 2), partial(keep, folder / "broken"))
    return caught.value


def start_of(task: str, made: Training) -> dict[str, Tensor]:
    """Return the weights that a training starts with."""
    torch.manual_seed(made.settings.seed)
    weights: dict[str, Tensor] = TASKS[task].network(**TASKS[task].built_with(made.settings)).state_dict()
    return weights


def assert_same_training(task: str, made: Training, one: Path, other: Path) -> None:
    """Make sure that two trainings took the same way: their difference is small beside what was learned."""
    (history, kept_epoch), (other_history, other_kept) = (
        json.loads((each / f"{task}.json").read_text("utf-8")) for each in (one, other)
    )
    assert kept_epoch == other_kept
    assert len(history) == len(other_history) == made.settings.epochs
    for row, other_row in zip(history, other_history, strict=True):
        assert other_row == pytest.approx(row, rel=1e-4)
    start = start_of(task, made)
    weights, others = (load_file(each / f"{task}.safetensors") for each in (one, other))
    assert set(weights) == set(others) == set(start)
    learned = difference = 0.0
    for name, tensor in weights.items():
        learned += float((tensor - start[name]).double().square().sum())
        difference += float((tensor - others[name]).double().square().sum())
    assert learned > 0.0
    assert difference < 1e-4 * learned  # both are squares


@pytest.mark.slow
@pytest.mark.parametrize("task", SMALL)
def test_two_processes_give_what_one_gives(task: str, folder: Path, failure: RunFailed) -> None:
    made = training(task, folder / "data", folder / "of_two")
    assert_same_training(task, made, folder / "of_one", folder / "of_two")


@pytest.mark.slow
def test_the_number_of_processes_is_not_part_of_what_a_training_is(folder: Path, failure: RunFailed) -> None:
    """So a training can be gone on with on another number of devices."""
    for task in SMALL:
        name = training(task, folder / "data", folder).name
        for states in ("of_one", "of_two"):
            assert (folder / states / name / "checkpoint.safetensors").exists()
            assert list((folder / states / name / "tensorboard").iterdir())
    name = training("classifier", folder / "data", folder).name
    content = [load_file(folder / states / name / "checkpoint.safetensors") for states in ("of_one", "of_two")]
    assert set(content[0]) == set(content[1])


@pytest.mark.slow
def test_an_error_in_another_process_reaches_the_caller_in_one_line(folder: Path, failure: RunFailed) -> None:
    assert str(failure) == "classifier: the loss is no longer finite: lower the learning rate"
    assert not list((folder / "broken").glob("*.json"))


@pytest.mark.slow
def test_two_processes_that_were_started_for_one_training_give_what_one_gives(folder: Path, tmp_path: Path) -> None:
    made = [training("classifier", folder / "data", tmp_path / f"states{count}") for count in (1, 2)]
    for count, each in enumerate(made, start=1):
        (tmp_path / str(count)).mkdir()
        run_training(each, Devices("cpu", count), partial(keep, tmp_path / str(count)))
    assert_same_training("classifier", made[0], tmp_path / "1", tmp_path / "2")


def test_an_error_in_this_process_is_the_same_line(tmp_path: Path) -> None:
    made = training("classifier", tmp_path, tmp_path / "states")
    write_study(made.training[2].path, 2, broken=True)
    with pytest.raises(RunFailed, match=r"^classifier: the loss is no longer finite: lower the learning rate$"):
        run_training(made, CPU, partial(keep, tmp_path))


def test_first_weights_are_not_fitted_where_a_training_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = training("classifier", tmp_path, tmp_path / "states")
    for name in ("once", "again"):
        (tmp_path / name).mkdir()
    run_training(made, CPU, partial(keep, tmp_path / "once"))
    fitted: list[Recipe] = []

    def note(recipe: Recipe) -> None:
        fitted.append(recipe)

    monkeypatch.setattr(ClassifierRecipe, "fit_to_data", note)
    run_training(made, CPU, partial(keep, tmp_path / "again"))
    assert not fitted
    once, again = (load_file(tmp_path / name / "classifier.safetensors") for name in ("once", "again"))
    assert all(torch.equal(tensor, again[name]) for name, tensor in once.items())
    run_training(replace(made, states=tmp_path / "new"), CPU, partial(keep, tmp_path / "again"))
    assert len(fitted) == 1


@pytest.mark.parametrize("damage", ["gone", "cut off"])
@pytest.mark.parametrize("task", ["classifier", "involvement"])
def test_prepared_data_that_cannot_be_read_are_told_in_one_line(task: str, damage: str, tmp_path: Path) -> None:
    """And nobody is told that something could not be written."""
    made = training(task, tmp_path, tmp_path / "states")
    for study in made.training:
        content = study.path.read_bytes()
        study.path.unlink()
        if damage == "cut off":
            study.path.write_bytes(content[: len(content) // 2])
    with pytest.raises((RunFailed, UsageError)) as caught:
        run_training(made, CPU, partial(keep, tmp_path))
    assert "\n" not in str(caught.value)
    assert "write" not in str(caught.value)
