"""Sources, synthetic lesions, augmentation, losses and the loop."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.involvement.training import AnnotatedSlices, InvolvementPatches, to_hounsfield
from models.lesions.training import DISTANCES, LesionPatches
from models.lungs.network import HALO
from models.lungs.training import INTERIOR, LungPatches
from models.training.loop import LoopSettings, fit
from models.training.patterns import covid_like, other_pneumonia
from models.training.source import Augmentation, PatchSize, SeededStream, Source, degrade, draw_patch
from models.training.synthesis import (
    COMBINED,
    CONSOLIDATION,
    CRAZY_PAVING,
    GROUND_GLASS,
    Pattern,
    insert_lesions,
    smooth_noise,
)

NONE = Augmentation(scale=0, rotation=0, flip=0, noise=0, offset=0, contrast=0, blur=0.3, sharpen=0)


def _healthy(shape: tuple[int, int, int] = (40, 60, 80)) -> tuple[np.ndarray, np.ndarray]:
    """Two blocks of lung (-850 HU) with a vessel (40 HU) in soft tissue."""
    lungs = np.zeros(shape, np.uint8)
    lungs[4:-4, 6:-6, 6:36] = 2
    lungs[4:-4, 6:-6, 44:-6] = 1
    hu = np.where(lungs > 0, -850.0, 40.0).astype(np.float32)
    hu[:, 30, :] = 40.0
    return hu, lungs


def _source(**changes: np.ndarray) -> Source:
    hu, lungs = _healthy()
    arrays = {"hu": hu.astype(np.int16), "lungs": lungs, "lesions": np.zeros_like(lungs), **changes}
    return Source("s", spacing=(2.0, 1.0, 1.0), **arrays)


@pytest.mark.parametrize("kind", [GROUND_GLASS, CONSOLIDATION, CRAZY_PAVING, COMBINED])
def test_inserted_lesions_are_of_their_type_and_stay_in_the_lungs(kind: int) -> None:
    hu, lungs = _healthy()
    weights = tuple(float(k == kind) for k in (GROUND_GLASS, CONSOLIDATION, CRAZY_PAVING, COMBINED))
    pattern = Pattern(count=(3, 3), radius=(8.0, 12.0), weights=weights)  # type: ignore[arg-type]
    made, labels = insert_lesions(hu, lungs, (2.0, 1.0, 1.0), pattern, np.random.default_rng(1))
    assert set(np.unique(labels)) == {0, kind}
    np.testing.assert_array_equal(made[lungs == 0], hu[lungs == 0])
    assert (labels[lungs == 0] == 0).all()
    air = (labels > 0) & (hu < -800)
    means = {GROUND_GLASS: (-750, -350), CONSOLIDATION: (-250, 60), CRAZY_PAVING: (-700, -150), COMBINED: (-750, 0)}
    low, high = means[kind]
    assert low < made[air].mean() < high


def test_lesions_only_add_density_and_spare_vessels() -> None:
    hu, lungs = _healthy()
    made, _ = insert_lesions(hu, lungs, (2.0, 1.0, 1.0), Pattern(), np.random.default_rng(2))
    assert (made >= hu).all()
    vessel = (hu > 0) & (lungs > 0)
    assert np.abs(made[vessel] - hu[vessel]).mean() < 15


def test_sides_are_respected_and_seeds_repeat() -> None:
    hu, lungs = _healthy()
    pattern = Pattern(sides=(1,), subpleural=0.0)
    first = insert_lesions(hu, lungs, (2.0, 1.0, 1.0), pattern, np.random.default_rng(3))
    again = insert_lesions(hu, lungs, (2.0, 1.0, 1.0), pattern, np.random.default_rng(3))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert first[1].any()
    assert not first[1][lungs == 2].any()


def test_smooth_noise_is_smooth_and_of_unit_variance() -> None:
    noise = smooth_noise((30, 30, 30), 8.0, (1.0, 1.0, 1.0), np.random.default_rng(0))
    assert noise.std() == pytest.approx(1.0, abs=1e-3)
    assert np.abs(np.diff(noise, axis=2)).mean() < 0.3


def test_patterns_of_the_classes_differ_as_medicine_says() -> None:
    rng = np.random.default_rng(0)
    covid, other = [covid_like(rng) for _ in range(50)], [other_pneumonia(rng) for _ in range(50)]
    assert all(p.sides == (1, 2) for p in covid)
    assert all(len(p.sides) == 1 for p in other)
    assert np.mean([p.weights[0] for p in covid]) > np.mean([p.weights[0] for p in other])
    assert all(sum(p.weights) == pytest.approx(1.0) for p in covid + other)


def test_a_patch_without_augmentation_is_the_source() -> None:
    rng = np.random.default_rng(0)
    hu = rng.integers(-900, 100, (20, 24, 28)).astype(np.int16)
    labels = rng.integers(0, 3, hu.shape).astype(np.uint8)
    source = Source("s", hu, labels, labels, (2.0, 1.0, 1.0))

    class _NoScale(np.random.Generator):
        def uniform(self, low=0.0, high=1.0, size=None):  # type: ignore[no-untyped-def]
            middle = (np.asarray(low) + np.asarray(high)) / 2
            return middle if size is None else np.broadcast_to(middle, size).copy()

    still = _NoScale(np.random.PCG64(1))  # every draw is the middle of its range: identity
    patch, lungs, lesions = draw_patch(source, (9.5, 11.5, 13.5), PatchSize((6, 8, 10), (2.0, 1.0, 1.0)), NONE, still)
    inner = np.s_[7:13, 8:16, 9:19]
    np.testing.assert_array_equal(lungs.numpy(), labels[inner])
    np.testing.assert_array_equal(lesions.numpy(), labels[inner])
    assert np.abs(patch.numpy() - hu[inner]).mean() < 40  # but for the lightest blur


def test_outside_the_source_is_air() -> None:
    patch, lungs, _ = draw_patch(
        _source(), (-200.0, 0.0, 0.0), PatchSize((3, 4, 4), (2.0, 1.0, 1.0)), NONE, np.random.default_rng(0)
    )
    assert float(patch.max()) < -1000
    assert not lungs.any()


def test_degrading_keeps_the_mean_and_varies_the_noise() -> None:
    flat = torch.full((4, 40, 40), -700.0)
    rng = np.random.default_rng(0)
    results = [degrade(flat, Augmentation(), rng) for _ in range(40)]
    assert max(float(r.std()) for r in results) > 20
    assert min(float(r.std()) for r in results) < 5
    assert abs(np.mean([float(r.mean()) for r in results]) + 700) < 25
    assert min(float(r.min()) for r in results) >= -1024


def test_lung_batches_have_halo_and_interior() -> None:
    images, targets = LungPatches([_source()], 0).draw(np.random.default_rng(0))
    assert images.shape == (2, 1, *(n + 2 * h for n, h in zip(INTERIOR, HALO, strict=True)))
    assert targets.shape == (2, 1, *INTERIOR)
    assert set(targets.unique().tolist()) <= {0.0, 1.0}


def test_lesion_batches_carry_types() -> None:
    hu, lungs = _healthy()
    made, labels = insert_lesions(hu, lungs, (2.0, 1.0, 1.0), Pattern(radius=(8, 14)), np.random.default_rng(0))
    stream = LesionPatches([_source(hu=made.astype(np.int16), lesions=labels)], 0)
    seen = set()
    for seed in range(6):
        image, target, inside = stream.draw(np.random.default_rng(seed))
        assert image.shape == target.shape == inside.shape
        seen |= set(target.unique().tolist())
    assert seen >= {0, *np.unique(labels).tolist()} - {0} or len(seen) > 1


def test_annotated_slices_get_the_usual_medians() -> None:
    ct = np.zeros((40, 40), np.uint8)
    lungs = np.zeros((40, 40), bool)
    lungs[10:30, 10:30] = True
    infection = np.zeros_like(lungs)
    infection[12:16, 12:16] = True
    ct[5:35, 5:35] = 200
    ct[lungs] = 60
    ct[infection] = 110
    hu = to_hounsfield(ct, lungs, infection)
    assert np.median(hu[lungs & ~infection]) == pytest.approx(-860)
    assert np.median(hu[(ct > 0) & ~lungs]) == pytest.approx(40)
    assert -860 < np.median(hu[infection]) < 40


def test_involvement_batches_mix_volumes_and_slices() -> None:
    rng = np.random.default_rng(0)
    ct = rng.integers(0, 255, (2, 256, 256)).astype(np.uint8)
    lungs = np.zeros(ct.shape, bool)
    lungs[:, 60:200, 60:200] = True
    slices = AnnotatedSlices(ct, lungs, lungs & (ct > 240))
    images, targets, inside = InvolvementPatches([_source()], slices, 0, batch=8).draw(rng)
    assert images.shape == targets.shape == inside.shape == (8, 1, 128, 128)
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    assert (targets <= inside).all()


def test_class_distances_are_a_metric_with_background_farthest() -> None:
    np.testing.assert_array_equal(DISTANCES, DISTANCES.T)
    assert (DISTANCES[0, 1:] == 1).all()
    assert DISTANCES[1:, 1:].max() < 1
    assert DISTANCES[4, 1:4].max() < DISTANCES[1, 2]
    for i in range(5):
        for j in range(5):
            assert (DISTANCES[i] + DISTANCES[:, j] >= DISTANCES[i, j] - 1e-12).all()


class _Line(SeededStream):
    def draw(self, rng: np.random.Generator) -> tuple[Tensor, ...]:
        x = torch.from_numpy(rng.standard_normal((16, 1)).astype(np.float32))
        return x, 3 * x - 1


def test_the_loop_learns_averages_and_keeps_a_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(0)
    lines: list[str] = []
    settings = LoopSettings(steps=200, learning_rate=0.1, weight_decay=0.0, averaging=0.9, workers=0)
    network = fit(
        nn.Linear(1, 1),
        _Line(0),
        lambda net, batch: ((net(batch[0]).float() - batch[1]) ** 2).mean(),
        settings,
        lines.append,
        tmp_path / "c.safetensors",
    )
    assert float(network.weight) == pytest.approx(3.0, abs=0.1)  # type: ignore[arg-type]
    assert float(network.bias) == pytest.approx(-1.0, abs=0.1)  # type: ignore[arg-type]
    torch.testing.assert_close(load_file(tmp_path / "c.safetensors")["weight"], network.weight.detach())
    assert "step 200/200" in lines[-1]
