"""The relevance rules against naive ones, and what the mathematics promises of the whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.classifier.network import Branch, Classifier, SpatialPyramidPooling
from models.relevance import rules
from models.relevance.explain import BranchRules, Relevance, explain


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        yield


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def uniform(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64)


def close(actual: Tensor, expected: Tensor, rtol: float = 1e-12, atol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


# --- naive rules: one output at a time, by definition ---

Share = Callable[[Tensor, Tensor, float], Tensor]
"""From a window of inputs, the weights on it and the bias: the fraction of the output's relevance for each."""


def alpha_beta_share(window: Tensor, weight: Tensor, bias: float) -> Tensor:
    products = window * weight
    positive = products.clamp(min=0).sum() + max(bias, 0.0)
    negative = products.clamp(max=0).sum() + min(bias, 0.0)
    if positive == 0 and negative == 0:
        return torch.zeros_like(products)
    if negative == 0:
        return products.clamp(min=0) / positive
    if positive == 0:
        return products.clamp(max=0) / negative
    return 2 * products.clamp(min=0) / positive - products.clamp(max=0) / negative


def z_box_share(window: Tensor, weight: Tensor, bias: float) -> Tensor:
    low, high = 0.0, 1.0
    contributions = window * weight - low * weight.clamp(min=0) - high * weight.clamp(max=0)
    assert (contributions >= -1e-15).all()
    total = contributions.sum()
    return contributions / total if total > 0 else torch.zeros_like(contributions)


def naive_conv(share: Share, x: Tensor, weight: Tensor, bias: Tensor, relevance: Tensor) -> Tensor:
    """Relevance of ``x`` (n, c, h, w) by loops over outputs; a window at the border holds existing inputs only."""
    received = torch.zeros_like(x)
    half = weight.shape[-1] // 2
    rows, columns = x.shape[2:]
    for n, j, y, z in product(range(len(x)), range(len(weight)), range(rows), range(columns)):
        y0, y1, z0, z1 = max(y - half, 0), min(y + half + 1, rows), max(z - half, 0), min(z + half + 1, columns)
        kernel = weight[j, :, y0 - y + half : y1 - y + half, z0 - z + half : z1 - z + half]
        fraction = share(x[n, :, y0:y1, z0:z1], kernel, float(bias[j]))
        received[n, :, y0:y1, z0:z1] += fraction * relevance[n, j, y, z]
    return received


def naive_linear(x: Tensor, weight: Tensor, bias: Tensor, relevance: Tensor) -> Tensor:
    received = torch.zeros_like(x)
    for n, j in product(range(len(x)), range(len(weight))):
        z = float((x[n] * weight[j]).sum() + bias[j])
        if z != 0:
            received[n] += x[n] * weight[j] / z * relevance[n, j]
    return received


def give_to_winner(received: Tensor, x: Tensor, relevance: float) -> None:
    """Add the relevance at the first maximum of a window."""
    place = divmod(int(x.argmax()), x.shape[1])
    received[place] += relevance


def scattered(places: Tensor, relevance: Tensor, size: tuple[int, int]) -> Tensor:
    """Relevance (n, c, m) at places (n, c, m) of planes of a size, as (n, c, h, w); several at one place add up."""
    plane = torch.zeros(*places.shape[:2], size[0] * size[1], dtype=relevance.dtype)
    for n, c, m in product(*map(range, places.shape)):
        plane[n, c, places[n, c, m]] += relevance[n, c, m]
    return plane.view(*places.shape[:2], *size)


def naive_max_pool(x: Tensor, relevance: Tensor) -> Tensor:
    received = torch.zeros_like(x)
    for n, c, y, z in product(*map(range, relevance.shape)):
        window = (n, c, slice(2 * y, 2 * y + 2), slice(2 * z, 2 * z + 2))
        give_to_winner(received[window], x[window], float(relevance[n, c, y, z]))
    return received


def naive_pyramid(x: Tensor, relevance: Tensor) -> Tensor:
    received = torch.zeros_like(x)
    rows, columns = x.shape[2:]
    for n in range(len(x)):
        values = iter(relevance[n].tolist())
        for grid in (5, 3, 2):
            for c, y, z in product(range(x.shape[1]), range(grid), range(grid)):
                down = slice(y * rows // grid, math.ceil((y + 1) * rows / grid))
                across = slice(z * columns // grid, math.ceil((z + 1) * columns / grid))
                give_to_winner(received[n, c, down, across], x[n, c, down, across], next(values))
        assert next(values, None) is None
    return received


# --- each rule ---


def test_quotient_of_nothing_is_nothing() -> None:
    result = rules.quotient(torch.tensor([3.0, 0.0, 2.0]), torch.tensor([2.0, 0.0, 0.0]))
    assert result.tolist() == [1.5, 0.0, 0.0]


def test_linear() -> None:
    x, weight, bias, relevance = normal(3, 5), normal(4, 5), normal(4), normal(3, 4)
    weight[2], bias[2] = 0.0, 0.0
    close(rules.linear(x, weight, bias, relevance), naive_linear(x, weight, bias, relevance))


def test_netvlad() -> None:
    x, centroids, relevance = normal(4, 5), normal(3, 5), normal(3, 5)
    assignment = F.softmax(normal(4, 3), dim=1)
    residuals = torch.zeros(3, 5, dtype=torch.float64)
    for n, k, d in product(range(4), range(3), range(5)):
        residuals[k, d] += assignment[n, k] * (x[n, d] - centroids[k, d])
    expected = torch.zeros_like(x)
    for n, k, d in product(range(4), range(3), range(5)):
        expected[n, d] += x[n, d] * assignment[n, k] / residuals[k, d] * relevance[k, d]
    close(rules.netvlad(x, assignment, residuals, relevance), expected)


@pytest.mark.parametrize("size", [(3, 4), (8, 8), (11, 7)])
def test_pyramid(size: tuple[int, int]) -> None:
    x, relevance = normal(2, 3, *size), normal(2, 3 * 38)
    x[0, 0] = 0.0  # ties
    values, places = rules.pyramid_winners(x, (5, 3, 2))
    close(values, SpatialPyramidPooling()(x))
    close(scattered(places, rules.pyramid(relevance, (5, 3, 2), 3), size), naive_pyramid(x, relevance))


def test_several_wins_add() -> None:
    x = torch.zeros(1, 1, 30, 30)
    x[0, 0, 12, 14] = 1.0
    places = rules.pyramid_winners(x, (5, 3, 2))[1]
    assert scattered(places, rules.pyramid(torch.ones(1, 38), (5, 3, 2), 1), (30, 30))[0, 0, 12, 14] == 3.0


def test_gate_is_gradient_times_input_of_each_factor() -> None:
    first, second, upstream = normal(50).requires_grad_(), normal(50).requires_grad_(), normal(50)
    gated = F.relu(first * second)
    gated.backward(upstream)  # type: ignore[no-untyped-call]
    assert first.grad is not None
    assert second.grad is not None
    relevance = (gated * upstream).detach()
    close(rules.gate(gated.detach(), relevance), first.detach() * first.grad)
    close(rules.gate(gated.detach(), relevance), second.detach() * second.grad)
    close(rules.gate(gated.detach(), relevance, 0.5), relevance / 2)
    assert not rules.gate(torch.zeros(3), torch.ones(3)).any()


def conv_case(case: str) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, bias = normal(2, 3, 6, 5), normal(4, 3, 3, 3), normal(4)
    if case != "signed":
        x = x.clamp(min=0)
    if case == "parts absent":
        x[0, :, :3], bias[:] = 0.0, torch.tensor([0.0, 0.0, 1.0, -1.0])
        weight[0], weight[1] = weight[0].abs(), -weight[1].abs()
    return x, weight, bias


def alpha_beta(x: Tensor, weight: Tensor, bias: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """The rule through convolution and pooling; also what the convolution gives."""
    rule = rules.AlphaBeta(weight, bias)
    split = rule.parts(x)
    output = split.positive + split.negative
    winners = F.max_pool2d(output, 2, return_indices=True)[1]
    return rule(x, split, winners, relevance), output


@pytest.mark.parametrize("case", ["not negative", "parts absent"])
def test_alpha_beta(case: str) -> None:
    x, weight, bias = conv_case(case)
    relevance = normal(2, 4, 3, 2)
    received, output = alpha_beta(x, weight, bias, relevance)
    close(output, F.conv2d(x, weight, bias, padding=1))
    expected = naive_conv(alpha_beta_share, x, weight, bias, naive_max_pool(output, relevance))
    close(received, expected, atol=1e-11)


@pytest.mark.parametrize("case", ["not negative", "parts absent"])
def test_alpha_beta_conserves_without_bias(case: str) -> None:
    x, weight, _ = conv_case(case)
    relevance = normal(2, 4, 3, 2)
    received, output = alpha_beta(x, weight, torch.zeros(4, dtype=torch.float64), relevance)
    contributes = F.conv2d(x, weight.abs(), padding=1) > 0
    handed = (naive_max_pool(output, relevance) * contributes).sum((1, 2, 3))
    close(received.sum((1, 2, 3)), handed, atol=1e-11)


CASES = ["signed", "not negative", "parts absent"]


@pytest.mark.parametrize("case", CASES)
def test_alpha_beta_at_places(case: str) -> None:
    x, weight, bias = conv_case(case)
    places, relevance = torch.randint(30, (2, 4, 9)), normal(2, 4, 9)
    places[..., 1] = places[..., 0]  # several wins
    expected = naive_conv(alpha_beta_share, x, weight, bias, scattered(places, relevance, (6, 5)))
    close(rules.AlphaBetaAt(weight, bias)(x, places, relevance), expected, atol=1e-11)


@pytest.mark.parametrize("case", CASES)
def test_alpha_beta_at_places_conserves_without_bias(case: str) -> None:
    x, weight, _ = conv_case(case)
    places, relevance = torch.randint(30, (2, 4, 9)), normal(2, 4, 9)
    received = rules.AlphaBetaAt(weight, torch.zeros(4, dtype=torch.float64))(x, places, relevance)
    contributes = F.conv2d(x.abs(), weight.abs(), padding=1) > 0
    handed = (scattered(places, relevance, (6, 5)) * contributes).sum((1, 2, 3))
    close(received.sum((1, 2, 3)), handed, atol=1e-11)


def z_box(x: Tensor, weight: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """The rule through convolution and pooling; also what the convolution gives."""
    output = F.conv2d(x, weight, padding="same")
    pooled, winners = F.max_pool2d(output, 2, return_indices=True)
    return rules.ZBox(weight, x.shape[2:])(x, pooled, winners, relevance), output


@pytest.mark.parametrize("size", [(9, 8), (4, 17), (16, 6)])
def test_z_box(size: tuple[int, int]) -> None:
    x, weight = uniform(2, 1, *size), normal(4, 1, 5, 5)
    x[0, 0, :6] = 0.0
    weight[0], weight[1] = weight[0].abs(), -weight[1].abs()
    relevance = normal(2, 4, size[0] // 2, size[1] // 2)
    no_bias = torch.zeros(4, dtype=torch.float64)
    received, output = z_box(x, weight, relevance)
    expected = naive_conv(z_box_share, x, weight, no_bias, naive_max_pool(output, relevance))
    close(received, expected, atol=1e-11)


def test_z_box_conserves_and_hands_out_the_sign_it_received() -> None:
    x, weight, relevance = uniform(2, 1, 9, 8), normal(4, 1, 5, 5), uniform(2, 4, 4, 4)
    received, _ = z_box(x, weight, relevance)
    close(received.sum((1, 2, 3)), relevance.sum((1, 2, 3)))
    assert (received >= 0).all()


def test_convolution_by_strips_is_the_transposed_convolution() -> None:
    for width in (7, 8, 21):
        x, weight = normal(2, 4, 6, width), normal(4, 2, 5, 5)
        close(rules.StripConvolution(weight)(x), F.conv_transpose2d(x, weight, padding=2))


# --- the whole ---


def study(slices: int = 3, size: int = 16) -> Tensor:
    inputs = uniform(slices, 2, size, size)
    inputs[:, 1] = (inputs[:, 1] > 0.7).double()
    inputs[:, :, :, : size // 4] = 0.0  # background
    return inputs


def network(biases: bool = True) -> Classifier:
    result = Classifier().double()
    if not biases:
        for name, tensor in result.named_parameters():
            if name.endswith("bias") or name.endswith("centroids"):
                nn.init.zeros_(tensor)
    return result


def frozen_linear_part(model: Classifier, s: Tensor, target: int) -> Tensor:
    """Logit as a function of the pyramid output s, with soft assignment and norms held at their values."""
    x = F.relu(model.descriptor(s))
    layer = model.aggregation
    assignment = F.softmax(layer.assignment(x), dim=1).detach()
    residuals = assignment.T @ x - assignment.sum(0)[:, None] * layer.centroids
    inner = residuals.detach().norm(dim=1, keepdim=True)
    outer = (residuals.detach() / inner).norm()
    logit: Tensor = (residuals / inner / outer).flatten() @ model.output.weight[target] + model.output.bias[target]
    return logit


def naive_branch(branch: Branch, image: Tensor, relevance: Tensor) -> Tensor:
    """From relevance at the branch's features back to its image, by the naive rules."""
    first = F.relu(branch.conv1(image))
    pooled1 = F.max_pool2d(first, 2)
    second = F.leaky_relu(branch.conv2(pooled1), 0.01)
    pooled2 = F.max_pool2d(second, 2)
    conv2, conv3 = branch.conv2, branch.conv3
    assert conv2.bias is not None
    assert conv3.bias is not None
    relevance = naive_conv(alpha_beta_share, pooled2, conv3.weight, conv3.bias, relevance)
    relevance = naive_max_pool(second, relevance)
    relevance = naive_conv(alpha_beta_share, pooled1, conv2.weight, conv2.bias, relevance)
    relevance = naive_max_pool(first, relevance)
    return naive_conv(z_box_share, image, branch.conv1.weight, torch.zeros(16), relevance)


@pytest.mark.parametrize(
    ("slices", "rows", "columns"), [(2, 8, 8), (3, 14, 9), pytest.param(3, 22, 13, marks=pytest.mark.slow)]
)
def test_whole_explanation_agrees_with_naive_rules(slices: int, rows: int, columns: int) -> None:
    model, inputs = network(), study(slices, 22)[:, :, :rows, :columns].contiguous()
    for target in (0, 1):
        relevance = explain(model, inputs, target, chunk=2)
        with torch.enable_grad():
            s = model.pyramid(model.encoder(inputs)).detach().requires_grad_()
            (gradient,) = torch.autograd.grad(frozen_linear_part(model, s, target), s)
        with torch.no_grad():
            encoder = model.encoder
            received = naive_pyramid(encoder(inputs), s * gradient)
            ct = naive_branch(encoder.global_branch, inputs[:, :1], received)
            lesions = naive_branch(encoder.side_branch, inputs[:, 1:], received)
        close(relevance.ct, ct[:, 0], rtol=0, atol=1e-12 * float(ct.abs().max()))
        close(relevance.lesions, lesions[:, 0], rtol=0, atol=1e-12 * float(lesions.abs().max()))
        assert relevance.logit == pytest.approx(float(model(inputs)[target].detach()), rel=1e-12)


@pytest.mark.parametrize("target", [0, 1])
def test_linear_part_is_input_times_gradient(target: int) -> None:
    model, inputs = network(), study(5)
    s = model.pyramid(model.encoder(inputs)).detach().requires_grad_()
    logit = frozen_linear_part(model, s, target)
    (gradient,) = torch.autograd.grad(logit, s)
    expected = (s * gradient).detach()
    with torch.no_grad():
        x = F.relu(model.descriptor(s))
        assignment = model.aggregation.assign(x)
        residuals = model.aggregation.residuals(x, assignment)
        at_residuals = model.aggregation(x).view(64, 512) * model.output.weight[target].view(64, 512)
        at_descriptors = rules.netvlad(x, assignment, residuals, at_residuals)
        relevance = rules.linear(s, model.descriptor.weight, model.descriptor.bias, at_descriptors)
    close(relevance, expected, rtol=1e-9, atol=1e-12 * float(expected.abs().max()))
    explained = explain(model, inputs, target)
    assert explained.ledger["pyramid"] == pytest.approx(float(expected.sum()), rel=1e-9)
    assert explained.logit == pytest.approx(float(logit.detach()), rel=1e-12)


def test_deficits_of_the_linear_part_are_the_shares_of_biases_and_centroids() -> None:
    model, inputs = network(), study(5)
    ledger = explain(model, inputs, 1).ledger
    with torch.no_grad():
        x = model.describe(inputs)
        assignment = model.aggregation.assign(x)
        residuals = model.aggregation.residuals(x, assignment)
        factor = (model.aggregation(x) * model.output.weight[1]).view(64, 512) / residuals
        of_centroids = -(factor * assignment.sum(0)[:, None] * model.aggregation.centroids).sum()
        of_bias = (model.descriptor.bias * (x > 0) * (assignment @ factor)).sum()
    assert ledger["logit"] - ledger["aggregation"] == pytest.approx(float(model.output.bias[1].detach()), rel=1e-10)
    assert ledger["aggregation"] - ledger["descriptors"] == pytest.approx(float(of_centroids), rel=1e-10)
    assert ledger["descriptors"] - ledger["pyramid"] == pytest.approx(float(of_bias), rel=1e-10)


def test_pools_and_the_first_layer_conserve_also_with_biases() -> None:
    ledger = explain(network(), study(), 1).ledger
    assert ledger["gate"] == pytest.approx(ledger["pyramid"], rel=1e-12)
    for channel in ("ct", "lesions"):
        assert ledger[f"{channel}.conv2"] == pytest.approx(ledger[channel], rel=1e-12)


def total(relevance: Relevance) -> tuple[float, float]:
    return float(relevance.ct.sum()), float(relevance.lesions.sum())


@pytest.mark.parametrize("target", [0, 1])
def test_without_biases_each_stage_and_each_heatmap_carries_the_logit(target: int) -> None:
    relevance = explain(network(biases=False), study(), target)
    assert len(relevance.ledger) == 11
    for value in (*relevance.ledger.values(), *total(relevance)):
        assert value == pytest.approx(relevance.logit, rel=1e-12)


def test_halves_sum_to_the_logit_and_are_half_of_the_full_heatmaps() -> None:
    model, inputs = network(biases=False), study()
    half, full = explain(model, inputs, gate_share=0.5), explain(model, inputs)
    assert sum(total(half)) == pytest.approx(half.logit, rel=1e-12)
    close(2 * half.ct, full.ct)
    close(2 * half.lesions, full.lesions)


@pytest.mark.parametrize("chunk", [1, 2, 7])
def test_chunks_do_not_change_the_explanation(chunk: int) -> None:
    model, inputs = network(), study(5)
    whole, parts = explain(model, inputs, chunk=5), explain(model, inputs, chunk=chunk)
    scale = float(whole.ct.abs().max())
    close(parts.ct / scale, whole.ct / scale, rtol=0)
    close(parts.lesions / scale, whole.lesions / scale, rtol=0)
    assert parts.ledger == pytest.approx(whole.ledger, rel=1e-9)


def test_the_order_of_the_slices_only_reorders_the_heatmaps() -> None:
    model, inputs, order = network(), study(4), [2, 0, 3, 1]
    relevance, reordered = explain(model, inputs), explain(model, inputs[order])
    scale = float(relevance.ct.abs().max())
    close(reordered.ct / scale, relevance.ct[order] / scale, rtol=0)
    close(reordered.lesions / scale, relevance.lesions[order] / scale, rtol=0)


def test_odd_sizes_and_empty_slices_are_explained() -> None:
    inputs = study(3, 16)[:, :, :13, :15].clone()
    inputs[1] = 0.0
    relevance = explain(network(), inputs)
    assert relevance.ct.shape == relevance.lesions.shape == (3, 13, 15)
    assert relevance.ct.isfinite().all()
    with_nothing = explain(network(biases=False), torch.zeros(2, 2, 16, 16, dtype=torch.float64))
    assert not with_nothing.ct.any()
    assert with_nothing.logit == 0.0


def test_float32_agrees_with_float64() -> None:
    model, inputs = network(), study(3, 32)
    model.float().double()
    precise = explain(model, inputs.float().double())
    rough = explain(model.float(), inputs.float())
    for heatmap in ("ct", "lesions"):
        exact, found = getattr(precise, heatmap), getattr(rough, heatmap)
        assert float((found - exact).abs().max() / exact.abs().max()) < 1e-4
        assert found.dtype == torch.float32


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_inputs_outside_the_box_are_refused(value: float) -> None:
    inputs = study()
    inputs[0, 0, 5, 5] = value
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        explain(network(), inputs)


@pytest.mark.parametrize("tensor", ["output.weight", "output.bias", "encoder.side_branch.conv1.weight"])
def test_weights_that_are_not_finite_are_told(tensor: str) -> None:
    model = network()
    with torch.no_grad():
        model.get_parameter(tensor).view(-1)[-1] = float("nan")
    with pytest.raises(FloatingPointError, match="not finite"):
        explain(model, study())


@pytest.mark.parametrize(("target", "share"), [(-1, 1.0), (2, 1.0), (1, 0.4), (1, 7.0)])
def test_what_cannot_be_explained_is_refused(target: int, share: float) -> None:
    with pytest.raises(ValueError, match="class is 0 or 1, the gate share from"):
        explain(network(), study(), target, gate_share=share)


@pytest.mark.parametrize("shape", [(0, 2, 16, 16), (3, 1, 16, 16), (3, 2, 3, 16), (2, 16, 16)], ids=str)
def test_what_is_no_study_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="slices"):
        explain(network(), torch.zeros(shape, dtype=torch.float64))


class Exported(nn.Module):
    """From the places of the features to the image, as a module to export."""

    def __init__(self, branch: Branch, size: tuple[int, int]) -> None:
        super().__init__()
        self._rules = BranchRules(branch, size)

    def forward(self, image: Tensor, places: Tensor, relevance: Tensor) -> Tensor:
        *_, (_, heatmap) = self._rules(image, places, relevance)
        return heatmap


def test_the_rules_are_forward_operations_that_export() -> None:
    with torch.no_grad():
        module = Exported(network().encoder.side_branch.requires_grad_(False), (24, 20))
        given = uniform(2, 1, 24, 20), torch.randint(30, (2, 64, 38)), normal(2, 64, 38)
        program = torch.export.export(module, given)
        close(program.module()(*given), module(*given))
