"""Weights on disk: right, or refused."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from models import record as records
from models.record import METADATA, WEIGHTS, ModelUnavailable, code_digest
from models.store import load_network, save_weights


def _small() -> nn.Linear:
    return nn.Linear(3, 2)


def _saved(folder: Path) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    save_weights(folder, network, {"name": "tiny", "version": "1.2"})
    return network


def test_weights_come_back_as_float16_rounds_them(tmp_path: Path) -> None:
    network = _saved(tmp_path)
    other, record = load_network(tmp_path, _small)
    assert (record.name, record.version, len(record.sha256)) == ("tiny", "1.2", 64)
    torch.testing.assert_close(other.weight, network.weight.half().float(), rtol=0, atol=0)
    assert other.weight.dtype == torch.float32
    assert not other.training


@pytest.mark.parametrize("name", [WEIGHTS, METADATA])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    _saved(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ModelUnavailable, match=name.split(".", maxsplit=1)[0]):
        load_network(tmp_path, _small)


def test_one_altered_bit_is_noticed(tmp_path: Path) -> None:
    _saved(tmp_path)
    content = bytearray((tmp_path / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (tmp_path / WEIGHTS).write_bytes(content)
    with pytest.raises(ModelUnavailable, match="is not the file"):
        load_network(tmp_path, _small)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"name": "x"}', '{"name": "x", "version": "1", "weights_sha256": "", "network_settings": 3}'],
)
def test_damaged_metadata_is_one_clear_line(tmp_path: Path, text: str) -> None:
    _saved(tmp_path)
    (tmp_path / METADATA).write_text(text)
    with pytest.raises(ModelUnavailable, match="damaged"):
        load_network(tmp_path, _small)


def test_the_network_is_built_as_the_metadata_say(tmp_path: Path) -> None:
    save_weights(tmp_path, nn.Linear(3, 5), {"name": "tiny", "version": "1.2"}, {"out_features": 5})
    network, record = load_network(tmp_path, lambda out_features: nn.Linear(3, out_features))
    assert network.out_features == 5
    assert json.loads(record.settings) == {"out_features": 5}


@pytest.mark.parametrize("settings", [{"unknown": 1}, {"out_features": 4}])
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, settings: dict[str, int]) -> None:
    save_weights(tmp_path, nn.Linear(3, 5), {"name": "tiny", "version": "1.2"}, settings)
    with pytest.raises(ModelUnavailable, match="do not fit"):
        load_network(tmp_path, lambda out_features: nn.Linear(3, out_features))


def test_weights_of_another_network_do_not_load(tmp_path: Path) -> None:
    _saved(tmp_path)
    with pytest.raises(ModelUnavailable, match="do not fit"):
        load_network(tmp_path, lambda: nn.Linear(4, 2))


def test_metadata_keep_what_they_said(tmp_path: Path) -> None:
    save_weights(tmp_path, nn.Linear(1, 1), {"name": "n", "version": "1", "task": "t"})
    assert json.loads((tmp_path / METADATA).read_text())["task"] == "t"


def test_the_digest_of_code_changes_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "SHIPPED", tmp_path / "models")
    (tmp_path / "operators" / "deep").mkdir(parents=True)
    digests = set()
    for text in ("a = 1", "a = 2"):
        (tmp_path / "operators" / "deep" / "code.py").write_text(text)
        code_digest.cache_clear()
        digests.add(code_digest("operators"))
        (tmp_path / "operators" / "notes.txt").write_text(text)
    assert len(digests) == 2
    with pytest.raises(ValueError, match="no code in nowhere"):
        code_digest("nowhere")
    code_digest.cache_clear()
