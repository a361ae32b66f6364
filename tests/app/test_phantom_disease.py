"""What the patients of a synthetic cohort have."""

from typing import Any

import numpy as np
import pytest

from app.phantom import disease
from app.phantom.disease import ALL, EXTENT, KINDS, Kind, both_labels, draw_kind, fall_ill
from app.phantom.insertion import CONSOLIDATION, Pattern, insert_lesions
from app.phantom.patterns import (
    MOST_LESIONS,
    ONE_SIDED,
    aspiration,
    bronchiolitis,
    bronchopneumonia,
    covid_like,
    lobar_pneumonia,
    oedema,
)
from models.morphology import distance_to

SPACING = (4.0, 3.0, 3.0)
ILL: list[Kind] = ["lobar", "bronchopneumonia", "bronchiolitis", "aspiration", "oedema", "covid"]


def _lungs() -> tuple[np.ndarray, np.ndarray, float]:
    """Lungs of usual size: two blocks of 2 litres each; CT, mask and ml."""
    lungs = np.zeros((60, 60, 90), np.uint8)
    lungs[4:-4, 6:-6, 5:38] = 2
    lungs[4:-4, 6:-6, 52:85] = 1
    return np.where(lungs > 0, -850.0, 40.0).astype(np.float32), lungs, float((lungs > 0).sum()) * 0.036


@pytest.mark.parametrize("extent", [0.005, 0.05, 0.3])
@pytest.mark.parametrize("pattern", [lobar_pneumonia, bronchopneumonia, bronchiolitis, aspiration, oedema, covid_like])
def test_as_much_of_the_lungs_is_affected_as_is_asked_for(pattern: Any, extent: float) -> None:
    hu, lungs, lungs_ml = _lungs()
    rng = np.random.default_rng(5)
    _, labels = insert_lesions(hu, lungs, SPACING, pattern(extent, lungs_ml, rng), rng)
    assert extent <= (labels > 0).sum() / (lungs > 0).sum() < (2.2 if pattern is lobar_pneumonia else 1.8) * extent


def test_nothing_of_the_kind_tells_how_large_a_disease_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a classifier learns size, and calls any large pneumonia COVID-19."""
    hu, lungs, _ = _lungs()
    extents: dict[str, list[float]] = {kind: [] for kind in ILL}
    for kind in ILL:
        monkeypatch.setattr(disease, "insert_lesions", lambda *args, kind=kind: extents[kind].append(args[3].extent))
        for seed in range(200):
            fall_ill(hu, lungs, SPACING, kind, np.random.default_rng(seed))
    assert all(drawn == extents["covid"] for drawn in extents.values())
    least, most = EXTENT
    assert all(least <= extent <= most for extent in extents["covid"])
    assert np.exp(np.mean(np.log(extents["covid"]))) == pytest.approx((least * most) ** 0.5, rel=0.35)


def test_the_diseases_differ_as_radiologists_say() -> None:
    """RSNA consensus: peripheral and bilateral haze is typical of COVID-19, lobar consolidation is not."""
    hu, lungs, lungs_ml = _lungs()
    depth = distance_to(lungs == 0, SPACING)
    found: dict[str, list[tuple[float, float, bool]]] = {}
    for pattern in (lobar_pneumonia, bronchopneumonia, bronchiolitis, aspiration, oedema, covid_like):
        for seed in range(6):
            rng = np.random.default_rng(seed)
            _, labels = insert_lesions(hu, lungs, SPACING, pattern(0.05, lungs_ml, rng), rng)
            ill = labels > 0
            both = all((labels[lungs == side] > 0).any() for side in (1, 2))
            dense = float((labels[ill] == CONSOLIDATION).mean())
            found.setdefault(pattern.__name__, []).append((float(depth[ill].mean()), dense, both))
    mean = {name: np.mean(values, axis=0) for name, values in found.items()}
    assert not any(both for *_, both in found["lobar_pneumonia"])
    assert all(both for name in ("bronchopneumonia", "aspiration", "oedema") for *_, both in found[name])
    assert any(both for *_, both in found["covid_like"])
    assert mean["covid_like"][0] < 0.7 * min(mean["bronchopneumonia"][0], mean["oedema"][0])
    assert max(mean["covid_like"][1], mean["oedema"][1]) < 0.3
    assert min(mean[name][1] for name in ("lobar_pneumonia", "bronchopneumonia", "bronchiolitis", "aspiration")) > 0.5
    assert mean["aspiration"][0] < 1.3 * mean["covid_like"][0], "where they lie does not tell one from the other"


def test_covid_19_is_in_one_lung_as_often_as_in_annotated_patients() -> None:
    """Else a classifier learns that what is one-sided is no COVID-19, which it is in one of three real patients."""
    rng = np.random.default_rng(0)
    drawn = [covid_like(0.05, 4000.0, rng) for _ in range(900)]
    one_sided = [pattern for pattern in drawn if len(pattern.sides) == 1]
    assert len(one_sided) / len(drawn) == pytest.approx(ONE_SIDED, abs=0.05)
    assert {pattern.sides for pattern in drawn} == {(1,), (2,), (1, 2)}
    few = {pattern.count[0] // MOST_LESIONS for pattern in one_sided}
    many = {pattern.count[0] // MOST_LESIONS for pattern in drawn if len(pattern.sides) == 2}
    assert few == {1, 2, 3}
    assert many == set(range(4, 17))


def test_lesions_that_are_to_lie_deep_do_so_where_they_can() -> None:
    hu, lungs, _ = _lungs()
    depth = distance_to(lungs == 0, SPACING)
    deep = Pattern(count=(20, 20), radius=(4.0, 4.1), subpleural=0.0, deep=30.0)
    _, labels = insert_lesions(hu, lungs, SPACING, deep, np.random.default_rng(0))
    assert labels.any()
    assert depth[labels > 0].min() > 20.0
    _, labels = insert_lesions(hu, lungs, SPACING, Pattern(subpleural=0.0, deep=500.0), np.random.default_rng(0))
    assert labels.any()


def test_kinds_are_drawn_as_often_as_the_table_says() -> None:
    rng = np.random.default_rng(0)
    for label, shares in KINDS.items():
        drawn = [draw_kind(label, rng) for _ in range(4000)]
        assert sum(share for _, share in shares) == pytest.approx(1.0)
        for kind, share in shares:
            assert drawn.count(kind) / len(drawn) == pytest.approx(share, abs=0.03)


def test_where_only_some_kinds_are_wanted_they_keep_their_proportions() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_kind(0, rng, ("oedema", "lobar", "covid")) for _ in range(2000)]
    shares = dict(KINDS[0])
    wanted = shares["lobar"] / (shares["lobar"] + shares["oedema"])
    assert set(drawn) == {"oedema", "lobar"}
    assert drawn.count("lobar") / len(drawn) == pytest.approx(wanted, abs=0.04)
    assert {draw_kind(1, rng, ("covid", "oedema")) for _ in range(20)} == {"covid"}


def test_both_labels_are_there_with_covid_and_another_kind() -> None:
    assert both_labels(ALL)
    assert both_labels(("covid", "aspiration"))
    assert not both_labels(("covid",))
    assert not both_labels(("healthy", "oedema"))
