"""The state of a training on disk: what is written comes back, and what is not ours is refused."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models.training.checkpoint import Checkpoint, CheckpointUnusable, Stage

IDENTITY = json.dumps({"task": "lungs", "settings": {"learning_rate": 0.1, "seed": 0}, "data": "a" * 64})
NAME = "checkpoint.safetensors"
ROOT = Path(__file__).resolve().parents[2]


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1).to(torch.bfloat16))


def trained(seed: int = 0, steps: int = 3) -> tuple[dict[str, nn.Module], torch.optim.Optimizer]:
    """Two modules of which the first has learned a little."""
    modules = {"objective": network(seed), "average": network(seed + 1)}
    parameters = [p for p in modules["objective"].parameters() if p.dtype == torch.float32]
    optimiser = torch.optim.Adam(parameters, lr=0.1)
    for _ in range(steps):
        optimiser.zero_grad()
        modules["objective"][:2](torch.randn(5, 3)).square().sum().backward()  # type: ignore[index]
        optimiser.step()
    return modules, optimiser


def stage() -> Stage:
    history = [{"training_loss": 0.1 + 0.2, "validation_loss": 1e-300}, {"training_loss": 1 / 3, "validation_loss": 2}]
    return Stage(history, 1e-300, 1, {"weight": torch.randn(2, 3), "count": torch.tensor(7)})


def saved(folder: Path, identity: str = IDENTITY) -> Checkpoint:
    checkpoint = Checkpoint(folder, identity)
    checkpoint.save(*trained(), stage())
    return checkpoint


def states(modules: dict[str, nn.Module], optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    named = {f"{key}.{name}": value for key, each in modules.items() for name, value in each.state_dict().items()}
    for index, values in optimiser.state_dict()["state"].items():
        named |= {f"{index}.{name}": value for name, value in values.items()}
    return named


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return set(one) == set(other) and all(
        value.dtype == other[name].dtype and torch.equal(value, other[name]) for name, value in one.items()
    )


def test_all_that_is_saved_comes_back_as_it_was(tmp_path: Path) -> None:
    written, kept = trained(), stage()
    Checkpoint(tmp_path / "new" / "folder", IDENTITY).save(*written, kept)
    read = trained(seed=5, steps=1)
    assert not same(states(*read), states(*written))
    found = Checkpoint(tmp_path / "new" / "folder", IDENTITY).load(*read)
    assert same(states(*read), states(*written))
    assert (found.history, found.best_loss, found.best_epoch) == (kept.history, kept.best_loss, kept.best_epoch)
    assert same(found.best, kept.best)
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == [NAME]


def test_an_optimiser_goes_on_where_it_was(tmp_path: Path) -> None:
    """Also one that has not made a step before, and whose rate was set otherwise: that is not of its state."""
    written = trained()
    Checkpoint(tmp_path, IDENTITY).save(*written, stage())
    read = trained(seed=5, steps=0)
    read[1].param_groups[0]["lr"] = 0.3
    Checkpoint(tmp_path, IDENTITY).load(*read)
    assert read[1].param_groups[0]["lr"] == 0.3
    written[1].param_groups[0]["lr"] = 0.3
    for modules, optimiser in (written, read):
        optimiser.zero_grad()
        modules["objective"][:2](torch.ones(5, 3) + torch.eye(5, 3)).square().sum().backward()  # type: ignore[index]
        optimiser.step()
    assert same(states(*read), states(*written))


def test_without_a_checkpoint_all_begins_anew(tmp_path: Path) -> None:
    modules, optimiser = trained()
    before = {name: value.clone() for name, value in states(modules, optimiser).items()}
    found = Checkpoint(tmp_path / "absent", IDENTITY).load(modules, optimiser)
    assert (found.history, found.best_loss, found.best_epoch, found.best) == ([], float("inf"), 0, {})
    assert same(states(modules, optimiser), before)
    assert not (tmp_path / "absent").exists()


def test_weights_that_share_memory_are_written_each(tmp_path: Path) -> None:
    shared = nn.Linear(2, 2)
    modules = {"objective": nn.Sequential(shared, shared)}
    optimiser = torch.optim.Adam(shared.parameters())
    Checkpoint(tmp_path, IDENTITY).save(modules, optimiser, Stage())
    other = nn.Linear(2, 2)
    Checkpoint(tmp_path, IDENTITY).load({"objective": nn.Sequential(other, other)}, optimiser)
    assert torch.equal(other.weight, shared.weight)


def test_a_checkpoint_is_replaced_whole_whatever_lay_there(tmp_path: Path) -> None:
    """Who has opened the earlier one goes on reading it."""
    checkpoint = saved(tmp_path)
    (tmp_path / f"{NAME}.part").write_bytes(b"of a run that was killed while it wrote")
    assert len(checkpoint.load(*trained()).history) == 2
    before = (tmp_path / NAME).read_bytes()
    later = stage()
    later.history.append({"training_loss": 1.0})
    with (tmp_path / NAME).open("rb") as opened:
        checkpoint.save(*trained(), later)
        assert opened.read() == before
    assert len(checkpoint.load(*trained()).history) == 3
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_where_there_is_no_room_the_earlier_checkpoint_stays(tmp_path: Path) -> None:
    """An error of the system, as of any file; nothing else is left in the folder."""
    checkpoint = saved(tmp_path)
    before = (tmp_path / NAME).read_bytes()
    state = trained()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))  # no file may be longer
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpoint.save(*state, stage())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / NAME).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def save_for_ever(folder: str) -> None:
    """Run in another process."""
    module = nn.Linear(4000, 4000)
    optimiser = torch.optim.Adam(module.parameters())
    while True:
        Checkpoint(Path(folder), IDENTITY).save({"objective": module}, optimiser, stage())


def test_a_process_killed_while_it_writes_leaves_a_checkpoint_and_nothing_for_ever(tmp_path: Path) -> None:
    saved(tmp_path)
    order = "import sys; from tests.models.test_checkpoint import save_for_ever; save_for_ever(sys.argv[1])"
    with subprocess.Popen([sys.executable, "-c", order, str(tmp_path)], cwd=ROOT) as process:
        end = time.monotonic() + 60.0
        while len(list(tmp_path.iterdir())) == 1 and process.poll() is None and time.monotonic() < end:
            time.sleep(0.001)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    Checkpoint(tmp_path, IDENTITY).load({}, trained()[1])  # whole, old or new
    saved(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("settings", "learning_rate"), 0.2, "settings.learning_rate 0.1 instead of 0.2"),
        (("settings", "seed"), 1, "settings.seed 0 instead of 1"),
        (("settings", "patience"), 3, "settings.patience None instead of 3"),
        (("task",), "lesions", "task lungs instead of lesions"),
        (("data",), "b" * 64, "other data"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_with_the_difference(
    path: tuple[str, ...], value: object, says: str, tmp_path: Path
) -> None:
    saved(tmp_path)
    identity = json.loads(IDENTITY)
    part = identity
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    modules, optimiser = trained(seed=3)
    before = {name: tensor.clone() for name, tensor in states(modules, optimiser).items()}
    with pytest.raises(CheckpointUnusable) as caught:
        Checkpoint(tmp_path, json.dumps(identity)).load(modules, optimiser)
    line = str(caught.value)
    assert says in line
    assert "\n" not in line
    assert str(tmp_path / NAME) in line
    assert "remove it to begin anew" in line
    assert same(states(modules, optimiser), before)
    assert (tmp_path / NAME).exists()


def test_a_setting_that_is_gone_is_named_too(tmp_path: Path) -> None:
    saved(tmp_path)
    identity = json.loads(IDENTITY)
    del identity["settings"]["seed"]
    with pytest.raises(CheckpointUnusable, match=r"settings\.seed 0 instead of None"):
        Checkpoint(tmp_path, json.dumps(identity)).load(*trained())


def test_a_checkpoint_cut_off_anywhere_is_refused_in_one_line(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path)
    path = tmp_path / NAME
    content = path.read_bytes()
    ends = {*range(12), *range(12, len(content), len(content) // 40), len(content) - 1}
    read = trained(seed=3)
    before = {name: tensor.clone() for name, tensor in states(*read).items()}
    for end in sorted(ends):
        path.write_bytes(content[:end])
        with pytest.raises(CheckpointUnusable) as caught:
            checkpoint.load(*read)
        assert str(caught.value) == f"the checkpoint {path} is damaged: remove it to begin anew"
    assert same(states(*read), before)
    path.write_bytes(content)
    assert len(checkpoint.load(*trained()).history) == 2


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {},
        {"identity": IDENTITY},
        {"stage": "{}"},
        {"identity": IDENTITY, "stage": "no JSON"},
        {"identity": IDENTITY, "stage": "{}"},
        {"identity": IDENTITY, "stage": "[]"},
        {"identity": "no JSON", "stage": '{"history": [], "best_loss": 1.0, "best_epoch": 0}'},
    ],
)
def test_what_says_nothing_of_a_training_is_refused(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    modules, optimiser = trained()
    tensors = {f"{key}/{name}": value for key, each in modules.items() for name, value in each.state_dict().items()}
    save_file({name: value.clone() for name, value in tensors.items()}, tmp_path / NAME, metadata)
    with pytest.raises(CheckpointUnusable, match="is damaged"):
        Checkpoint(tmp_path, IDENTITY).load(modules, optimiser)


def test_tensors_of_another_network_are_refused(tmp_path: Path) -> None:
    """As where the software has changed since."""
    saved(tmp_path)
    modules, optimiser = trained()
    modules["objective"].append(nn.Linear(1, 1))  # type: ignore[operator]
    with pytest.raises(CheckpointUnusable):
        Checkpoint(tmp_path, IDENTITY).load(modules, optimiser)
