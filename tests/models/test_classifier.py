"""The classifier network and its losses."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from models.classifier.losses import ClassFocalLoss
from models.classifier.network import Branch, Classifier, GatedEncoder, NetVLAD, SpatialPyramidPooling


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        yield


def parameters(module: nn.Module) -> int:
    return sum(tensor.numel() for tensor in module.parameters())


def test_parameter_counts_are_those_of_the_paper_s_layers() -> None:
    network = Classifier()
    assert parameters(Branch()) == 23_552
    assert parameters(GatedEncoder()) == 47_104
    assert parameters(network.descriptor) == 1_245_696
    assert parameters(network.aggregation) == 65_600
    assert parameters(network.output) == 65_538
    assert parameters(network) == 1_423_938


def test_shapes_at_full_size() -> None:
    network = Classifier()
    slices = torch.rand(1, 2, 512, 512)
    with torch.inference_mode():
        features = network.encoder(slices)
        assert features.shape == (1, 64, 128, 128)
        assert network.pyramid(features).shape == (1, 2432)
        assert network.describe(slices).shape == (1, 512)
        assert network(slices).shape == (2,)


@pytest.mark.parametrize("size", [(4, 4), (17, 30), (32, 21), (64, 64)])
@torch.inference_mode()
def test_any_slice_size_and_number_will_do(size: tuple[int, int]) -> None:
    network = Classifier()
    for count in (1, 3):
        logits = network(torch.rand(count, 2, *size))
        assert logits.shape == (2,)
        assert logits.isfinite().all()


def naive_branch(branch: Branch, image: Tensor) -> Tensor:
    """The branch on one image (H, W), by loops over windows."""
    features = image[None]
    for index, layer in enumerate((branch.conv1, branch.conv2, branch.conv3)):
        assert layer.bias is not None
        kernel, (rows, columns) = layer.weight.shape[-1], features.shape[1:]
        padded = torch.zeros(features.shape[0], rows + kernel - 1, columns + kernel - 1, dtype=features.dtype)
        half = kernel // 2
        padded[:, half : half + rows, half : half + columns] = features
        output = torch.empty(layer.weight.shape[0], rows, columns, dtype=features.dtype)
        for y in range(rows):
            for x in range(columns):
                window = padded[:, y : y + kernel, x : x + kernel]
                output[:, y, x] = (layer.weight * window).sum((1, 2, 3)) + layer.bias
        slope = 0.0 if index == 0 else 0.01
        features = torch.where(output > 0, output, slope * output)
        if index < 2:
            even = features[:, : rows // 2 * 2, : columns // 2 * 2]
            features = even.reshape(len(even), rows // 2, 2, columns // 2, 2).amax((2, 4))
    return features


@torch.inference_mode()
def test_the_encoder_agrees_with_loops() -> None:
    encoder = GatedEncoder().double()
    slices = torch.rand(2, 2, 9, 13, dtype=torch.float64)
    for image, features in zip(slices, encoder(slices), strict=True):
        product = naive_branch(encoder.global_branch, image[0]) * naive_branch(encoder.side_branch, image[1])
        torch.testing.assert_close(features, product.clamp(min=0), rtol=0, atol=1e-12)


def test_pyramid_takes_the_maximum_of_each_cell() -> None:
    features = torch.rand(2, 3, 11, 7)
    expected = []
    for grid in (5, 3, 2):
        for channel in range(3):
            for row in range(grid):
                for column in range(grid):
                    rows = slice(row * 11 // grid, math.ceil((row + 1) * 11 / grid))
                    columns = slice(column * 7 // grid, math.ceil((column + 1) * 7 / grid))
                    expected.append(features[:, channel, rows, columns].amax((1, 2)))
    torch.testing.assert_close(SpatialPyramidPooling()(features), torch.stack(expected, dim=1), rtol=0, atol=0)


@torch.inference_mode()
def test_netvlad_agrees_with_loops() -> None:
    layer = NetVLAD(5, 3).double()
    descriptors = torch.randn(4, 5, dtype=torch.float64)
    vectors = torch.zeros(3, 5, dtype=torch.float64)
    for descriptor in descriptors:
        scores = [math.exp(float(w @ descriptor + b)) for w, b in zip(*layer.assignment.parameters(), strict=True)]
        for cluster in range(3):
            vectors[cluster] += scores[cluster] / sum(scores) * (descriptor - layer.centroids[cluster])
    vectors = torch.stack([vector / vector.norm() for vector in vectors])
    torch.testing.assert_close(layer(descriptors), (vectors / vectors.norm()).flatten(), rtol=0, atol=1e-12)


@torch.inference_mode()
def test_slices_are_a_set() -> None:
    network = Classifier().double()
    slices = torch.rand(5, 2, 24, 24, dtype=torch.float64)
    torch.testing.assert_close(network(slices[[3, 1, 4, 0, 2]]), network(slices), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(network(slices[:4]), network(slices))


@torch.inference_mode()
@pytest.mark.parametrize("chunk", [1, 2, 5, 9])
def test_chunks_do_not_change_the_descriptors(chunk: int) -> None:
    network = Classifier().double()
    slices = torch.rand(5, 2, 24, 24, dtype=torch.float64)
    torch.testing.assert_close(network.describe(slices, chunk=chunk), network.describe(slices), rtol=1e-12, atol=1e-12)


def test_every_parameter_learns() -> None:
    network = Classifier()
    network(torch.rand(3, 2, 32, 32)).sum().backward()
    assert all(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in network.parameters())


@pytest.mark.parametrize(("weights", "gamma"), [((0.25, 0.35), 5.0), ((1.0, 1.0), 0.0), ((0.1, 0.9), 2.0)])
def test_focal_loss_is_the_paper_s_formula(weights: tuple[float, float], gamma: float) -> None:
    logits = torch.tensor([[0.3, -1.2], [2.0, 1.0], [-0.7, 0.4]])
    labels = torch.tensor([0, 1, 0])
    terms = []
    for scores, label in zip(logits.tolist(), labels.tolist(), strict=True):
        probability = math.exp(scores[label]) / sum(math.exp(score) for score in scores)
        terms.append(-weights[label] * (1 - probability) ** gamma * math.log(probability))
    assert float(ClassFocalLoss(weights, gamma)(logits, labels)) == pytest.approx(sum(terms) / 3, rel=1e-5)
