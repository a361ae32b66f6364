"""Settings are checked before any work, wherever they come from."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from app.outcome import UsageError
from app.settings import Settings, load_settings


def test_defaults_are_those_of_the_paper() -> None:
    assert load_settings().model_dump() == {
        "studies": "each",
        "max_gap_mm": 5.0,
        "threshold": 0.5,
        "in_plane": None,
        "target": "positive",
        "gate_share": 1.0,
        "residual_limit": 0.75,
        "layout": "auto",
        "deflate": False,
        "pdf": False,
        "runtime": "auto",
        "precision": "auto",
    }


def test_environment_sets_and_assignment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COVID_CT_THRESHOLD", "0.3")
    monkeypatch.setenv("COVID_CT_IN_PLANE", "128")
    settings = load_settings(["threshold=0.7"])
    assert settings.threshold == 0.7
    assert settings.in_plane == 128


def test_what_kubernetes_and_compose_leave_in_the_environment_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COVID_CT_PDF", "")
    for name in (
        "MAP_SERVICE_HOST",
        "MAP_PORT",
        "MAP_PORT_80_TCP_ADDR",
        "MAP_SERVICE_PORT_HTTP",
        "SERVICE_HOST",
        "PORT",
    ):
        monkeypatch.setenv(f"COVID_CT_{name}", "tcp://10.0.0.1:80")
    assert load_settings().pdf is False
    monkeypatch.setenv("COVID_CT_PORTS", "80")
    with pytest.raises(UsageError, match="unknown setting COVID_CT_PORTS"):
        load_settings()


def test_flat_under_mercure_unless_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [load_settings([f"layout={name}"]).flat for name in ("auto", "folders", "flat")] == [False, False, True]
    monkeypatch.setenv("MERCURE_OUT_DIR", "/tmp/output")  # noqa: S108 - where mercure mounts it
    assert [load_settings([f"layout={name}"]).flat for name in ("auto", "folders", "flat")] == [True, False, True]


@pytest.mark.parametrize(
    "assignment",
    [
        "threshold=0",
        "threshold=1",
        "threshold=nan",
        "in_plane=2.5",
        "in_plane=8",
        "target=maybe",
        "gate_share=0.2",
        "residual_limit=0",
        "residual_limit=inf",
        "precision=half",
        "studies=all",
        "layout=nested",
        "max_gap_mm=0",
    ],
)
def test_a_value_out_of_range_names_the_setting(assignment: str) -> None:
    with pytest.raises(UsageError, match=f"setting {assignment.partition('=')[0]}: "):
        load_settings([assignment])


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown setting treshold; known: studies"):
        load_settings(["treshold=0.4"])


def test_an_unknown_name_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COVID_CT_TRESHOLD", "0.4")
    with pytest.raises(UsageError, match="COVID_CT_TRESHOLD in the environment"):
        load_settings()


def test_the_debug_variable_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COVID_CT_DEBUG", "1")
    assert load_settings() == Settings()


def test_an_assignment_needs_a_value() -> None:
    with pytest.raises(UsageError, match="NAME=VALUE"):
        load_settings(["threshold"])


def test_settings_are_immutable() -> None:
    settings = load_settings()
    with pytest.raises(ValidationError):
        settings.threshold = 0.9  # type: ignore[misc]


def test_every_value_that_changes_a_result_changes_the_fingerprint() -> None:
    assignments = [
        "max_gap_mm=3",
        "threshold=0.4",
        "in_plane=128",
        "target=decision",
        "gate_share=0.5",
        "residual_limit=0.5",
        "runtime=torch",
        "precision=float32",
    ]
    assert [assignment.partition("=")[0] for assignment in assignments] == [
        name for name in Settings.model_fields if name not in ("studies", "layout", "deflate", "pdf")
    ]
    fingerprints = {load_settings([assignment]).fingerprint for assignment in assignments}
    assert len({*fingerprints, load_settings().fingerprint}) == 9
    assert load_settings(["threshold=0.50"]).fingerprint == load_settings().fingerprint


def test_the_readme_names_every_setting_with_its_default() -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text("utf-8")
    for name, value in Settings().model_dump().items():
        assert f"| `{name}` | {str(value).lower()} |" in readme
