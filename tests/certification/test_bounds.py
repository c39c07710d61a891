"""Bounds of margins: known numbers, and images that would violate them."""

import re

import pytest
import torch
from torch import Tensor, nn

from rqlib import attacks, certification, defenses, quantization
from rqlib.certification import boxes, linear_bounds, lines, patches, programs
from rqlib.certification.boxes import Box
from tests.networks import COLOR, narrow

METHODS = {name: getattr(certification, name) for name in ("ibp", "crown_ibp", "crown", "symbolic")}


def linear(weight: list, bias: list) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight)).double()
    layer.weight.data = torch.tensor(weight, dtype=torch.float64)
    layer.bias.data = torch.tensor(bias, dtype=torch.float64)
    return layer


def interval(network: nn.Module, box: Box, slope: str | None = None) -> tuple[float, float]:
    """The bounds of a network's only output: of boxes, or of one backward pass."""
    steps = programs.program(network, (2,))
    found = boxes.propagate(steps, box)
    if slope is None:
        return found[-1].low.item(), found[-1].high.item()
    rows, owner = torch.tensor([[1.0], [-1.0]], dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    lower = linear_bounds._lower(steps, found, len(steps) - 1, rows[None], owner, slope)
    return lower[0, 0].item(), -lower[0, 1].item()


TOY = nn.Sequential(linear([[1, 1], [1, 2]], [0.5, 0]), nn.ReLU(), linear([[1, -1]], [0])).eval()


@pytest.mark.parametrize(
    ("low", "high", "slope", "expected"),
    [
        ([0, -1], [2, 1], None, (-4, 3.5)),
        ([0, -1], [2, 1], "adaptive", (-7 / 6, 2)),
        ([0, -1], [2, 1], "same", (-1.354167, 1.75)),
        ([0, 0], [1, 1], None, (-2.5, 2.5)),
        ([0, 0], [1, 1], "adaptive", (-0.5, 0.5)),
        ([0, 0], [1, 1], "same", (-0.5, 0.5)),
    ],
)
def test_two_hidden_units(low, high, slope, expected):
    box = Box(torch.tensor([low], dtype=torch.float64), torch.tensor([high], dtype=torch.float64))
    assert interval(TOY, box, slope) == pytest.approx(expected, abs=1e-6)


def test_three_layers():
    """Logits (1.55, -0.3); the ball is not clipped."""
    network = nn.Sequential(
        *(linear([[1, 1], [1, -1]], [0, 0]), nn.ReLU(), linear([[1, 1], [1, -1]], [0, -0.5]), nn.ReLU()),
        linear([[1, 0.5], [-0.5, 1]], [0.2, 0]),
    ).eval()
    steps = programs.program(network, (2,))
    x, y = torch.tensor([[0.6, 0.4]], dtype=torch.float64), torch.tensor([0])
    box = Box(x - 0.3, x + 0.3)
    found = boxes.propagate(steps, box)
    assert found[1].low.tolist() == [pytest.approx([0.4, -0.4])]
    assert found[3].high.tolist() == [pytest.approx([2.4, 1.1])]
    assert found[5].low.tolist() == [pytest.approx([0.6, -1.2])]
    assert boxes.margins(steps, found, y)[0, 1].item() == pytest.approx(0.25)
    for slope, loose, close in (("adaptive", 0.605, 0.65), ("same", 0.816667, 0.882576)):
        assert linear_bounds.margins(steps, found, y, slope=slope)[0, 1].item() == pytest.approx(loose, abs=1e-6)
        tight = linear_bounds.tightened(steps, box, slope=slope)
        assert linear_bounds.margins(steps, tight, y, slope=slope)[0, 1].item() == pytest.approx(close, abs=1e-6)


CONVOLUTIONAL = {  # radius -> boxes; one backward pass; all backward; the same with parallel lines
    0.02: (
        (0.457608, 0.279813),
        (0.536229, 0.663167),
        (0.536229, 0.663167),
        (0.539369, 0.661577),
        (0.539369, 0.661577),
    ),
    0.05: ((0.202337, -0.4012), (0.405701, 0.546942), (0.419262, 0.548387), (0.418151, 0.508383), (0.430883, 0.539531)),
}


@pytest.mark.parametrize("epsilon", CONVOLUTIONAL)
def test_a_convolutional_network(epsilon):
    network = nn.Sequential(nn.Conv2d(1, 2, 3, 1, 1), nn.ReLU(), nn.Conv2d(2, 2, 3, 2, 1), nn.ReLU(), nn.Flatten())
    network.append(nn.Linear(18, 3)).double().eval()
    for number, parameter in enumerate(network.parameters()):
        values = ((torch.arange(parameter.numel()) * 7 + number) % 11 - 5).double() / 10
        parameter.data = values.view_as(parameter)
    x, y = ((torch.arange(36) * 5 % 17).double() / 16).view(1, 1, 6, 6), torch.tensor([2])
    assert network(x)[0].tolist() == pytest.approx([-0.347125, -0.474375, 0.265313], abs=1e-6)
    steps, box = programs.program(network, (1, 6, 6)), boxes.of_images(x, epsilon)
    found = boxes.propagate(steps, box)
    tight, parallel = (linear_bounds.tightened(steps, box, slope=slope) for slope in lines.SLOPES)
    margins = (
        boxes.margins(steps, found, y),
        linear_bounds.margins(steps, found, y),
        linear_bounds.margins(steps, tight, y),
        linear_bounds.margins(steps, found, y, slope="same"),
        linear_bounds.margins(steps, parallel, y, slope="same"),
    )
    for margin, expected in zip(margins, CONVOLUTIONAL[epsilon], strict=True):
        assert margin[0, :2].tolist() == pytest.approx(expected, abs=2e-6)


class Everything(nn.Module):
    """Every kind of step in one small network."""

    def __init__(self, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        groups, dilation = 1 + seed % 2, 1 + seed % 2
        self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.pool = nn.MaxPool2d(3, 2, 1) if seed % 3 else nn.MaxPool2d(2)
        self.inner = nn.Conv2d(4, 4, 3, padding=1, groups=groups)
        self.last = nn.Conv2d(8, 6, 3, stride=2, dilation=dilation, padding=1, padding_mode="reflect")
        self.clip, self.mean = (nn.ReLU6(), nn.Hardtanh(-0.5, 1), nn.ReLU())[seed % 3], nn.AvgPool2d(2)
        self.hidden, self.logits = nn.Linear(6, 8), nn.Linear(8, 4)
        self.norm.running_mean.normal_(0, 0.1)
        self.norm.running_var.uniform_(0.5, 2)
        nn.init.normal_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.clip(self.norm(self.first((x - 0.5) / 0.25))))
        x = torch.relu(x + self.inner(x))
        one, two = x.chunk(2, 1)
        x = torch.cat([two, one, torch.clamp(x - 0.1, min=0)], 1)
        x = self.mean(torch.relu(self.last(x))).mean((2, 3))
        return self.logits(torch.relu(self.hidden(x)))


def smallest_seen(network: nn.Module, box: Box, y: Tensor, count: int = 200) -> Tensor:
    """The smallest margins (B, K) of ``count`` images inside each box and as many of its corners."""
    worst = torch.full((len(y), network(box.low).shape[1]), torch.inf)
    for corners in (False, True):
        shares = torch.rand(count, *box.low.shape)
        images = box.low + (box.high - box.low) * (shares.round() if corners else shares)
        logits = network(images.flatten(0, 1)).unflatten(0, (count, -1))
        margins = logits.gather(2, y.view(1, -1, 1).expand(count, -1, 1)) - logits
        worst = torch.minimum(worst, margins.amin(0))
    return worst


def is_violated(margins: Tensor, worst: Tensor, y: Tensor) -> bool:
    """Whether an image was seen whose margin is below its bound."""
    return bool((margins.scatter(1, y[:, None], 0.0) > worst + 1e-5).any())


@torch.no_grad()
@pytest.mark.parametrize(
    ("format", "nonnegative"),
    [
        (None, ""),
        ("INT_4", "unsigned"),
        ("INT_4", "zero_point"),
        ("INT_8", "unsigned"),
        ("POT_4", "unsigned"),
        ("FLOAT_8_E4", "unsigned"),
        ("FLOAT_5_E2_LEGACY", "unsigned"),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_no_image_in_the_ball_violates_a_bound(seed, format, nonnegative):
    network, epsilon = Everything(seed).eval(), (0.01, 0.05, 0.2)[seed]
    if seed == 1:  # a mask
        network.last.weight.data *= torch.rand_like(network.last.weight) < 0.3
    if format:
        calibration = torch.randint(256, (32, 3, 12, 12), dtype=torch.uint8)
        network = quantization.ptq(network, format, calibration, nonnegative=nonnegative)
    x = torch.rand(2, 3, 12, 12)
    y = network(x).argmax(1)
    worst = smallest_seen(network, boxes.of_images(x, epsilon), y)
    found = {name: method(network, x, y, epsilon=epsilon) for name, method in METHODS.items()}
    for name, margins in found.items():
        assert not is_violated(margins, worst, y), name
    assert (found["crown_ibp"] >= found["ibp"] - 1e-6).all()


@torch.no_grad()
@pytest.mark.parametrize("mistake", ["none", "extremes of the batch", "unmerged as merged"])
def test_a_wrong_bound_is_caught(mistake):
    network, epsilon = narrow("CNN_small"), 0.05
    x = torch.full((4, *COLOR.shape), 0.5)
    y = network(x).argmax(1)
    steps, ball = programs.program(network, COLOR.shape), boxes.of_images(x, epsilon)
    box = ball
    if mistake == "extremes of the batch":
        box = Box(*(end.clamp(x.min(), x.max()) for end in ball))
    found = boxes.propagate(steps, box)
    margins = linear_bounds.margins(steps, linear_bounds.tightened(steps, box), y)
    if mistake == "unmerged as merged":
        low = found[-1].low
        margins = (low.gather(1, y[:, None]) - low).scatter(1, y[:, None], torch.inf)
    worst = torch.minimum(smallest_seen(network, ball, y), _attacked(network, x, y, epsilon))
    assert is_violated(margins, worst, y) == (mistake != "none")


def _attacked(network: nn.Module, x: Tensor, y: Tensor, epsilon: float) -> Tensor:
    """The margins (B, K) of images under PGD."""
    ball = attacks.Linf(epsilon)
    logits = network(attacks.pgd(network, x, y, ball=ball, **attacks.pace(ball, 20), loss="margin"))
    return logits.gather(1, y[:, None]) - logits


@torch.no_grad()
@pytest.mark.parametrize("slope", lines.SLOPES)
def test_patches_give_the_bounds_of_whole_images(monkeypatch, slope):
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 5, (3, 2), 1, (1, 0)), nn.Hardtanh(-1, 1))
    network += nn.Sequential(nn.Conv2d(5, 6, 2, 2, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(54, 3))
    steps = programs.program(network, (3, 13, 13))
    box = boxes.of_images(torch.rand(3, 3, 13, 13), 0.1)
    assert [patches.fit(steps, number) for number in (3, 5)] == [True, True]
    close = linear_bounds.tightened(steps, box, slope=slope)
    monkeypatch.setattr(patches, "fit", lambda *_: False)
    for one, other in zip(close, linear_bounds.tightened(steps, box, slope=slope), strict=True):
        assert torch.allclose(one.low, other.low, atol=1e-5)
        assert torch.allclose(one.high, other.high, atol=1e-5)


@torch.no_grad()
def test_only_wanted_margins_are_bounded():
    network, x = narrow("CNN_small"), torch.rand(5, *COLOR.shape)
    y = network(x).argmax(1)
    steps = programs.program(network, COLOR.shape)
    found = boxes.propagate(steps, boxes.of_images(x, 0.01))
    wanted = torch.rand(5, 10) < 0.3
    whole, some = linear_bounds.margins(steps, found, y), linear_bounds.margins(steps, found, y, wanted=wanted)
    own = torch.arange(10) == y[:, None]
    assert torch.allclose(some[wanted | own], whole[wanted | own], atol=1e-5)
    assert (some[~(wanted | own)] == -torch.inf).all()


class InPlace(nn.Module):
    """A network whose steps write into what they read."""

    def __init__(self):
        super().__init__()
        self.first, self.relu, self.last = nn.Linear(12, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1))
        x += 0.1
        return self.last(self.relu(x))


def test_steps_leave_what_they_read():
    network, x, y = InPlace().eval(), torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 2, 0])
    plain = nn.Sequential(nn.Flatten(), network.first, nn.ReLU(), network.last)
    plain[1].bias.data += 0.1
    expected = [method(plain, x, y, epsilon=0.2) for method in METHODS.values()]
    plain[1].bias.data -= 0.1
    for method, margins in zip(METHODS.values(), expected, strict=True):
        assert torch.allclose(method(network, x, y, epsilon=0.2), margins, atol=1e-5)


class Squared(nn.Module):
    """Arithmetic of a signal with itself, and a division by it, which are not affine."""

    def __init__(self, divides: bool):
        super().__init__()
        self.divides, self.layer = divides, nn.Linear(3072, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x.flatten(1))
        return 1 / x if self.divides else x * x


def test_closer_methods_certify_more():
    model, x = narrow("CNN_small"), torch.rand(6, *COLOR.shape)
    y = model(x).argmax(1)
    least = {name: method(model, x, y, epsilon=0.002).amin(1) for name, method in METHODS.items()}
    assert (least["crown"] >= least["crown_ibp"] - 1e-6).all()
    assert (least["crown"] > least["ibp"]).all()
    assert certification.certified(model, x, torch.full((6, 10), 1e-7)).sum() == 0
    assert certification.certified(model, x, torch.ones(6, 10)).all()


def test_a_rounded_box_is_exact():
    """Of z in [0.4, 1.8] rounded to thirds of [0, 1] the box is [1/3, 1], and of [1.3, 1.8] it is 1 alone."""
    format = quantization.INT(3)  # -3 ... 3, here in units of 1/3
    quantizer = quantization.fake_quantize.Quantized(format, torch.tensor(1 / (3 * format.unit)))
    step = programs.Step("round", programs.ROUND, (0,), quantizer, (1,), quantizer, (-1.0, 1.0))
    image = programs.Step("image", programs.IMAGE, (), lambda x: x, (1,))
    for low, high, expected in ((0.4, 1.8, (1 / 3, 1)), (1.3, 1.8, (1, 1))):
        box = boxes.propagate([image, step], Box(torch.tensor([[low]]), torch.tensor([[high]])))[-1]
        assert (box.low.item(), box.high.item()) == pytest.approx(expected)
    half_a_step_outside = 1.3 - 1 / 6, 1.8 + 1 / 6  # of the ends, not clipped
    seen = quantizer(torch.linspace(1.3, 1.8, 50))
    assert box.low <= seen.min()
    assert seen.max() <= box.high
    assert seen.min() < half_a_step_outside[0]


def test_unmerged_margins_are_looser():
    """The margin 0.25 of the merged difference would be -0.3 as a difference of two intervals."""
    steps = programs.program(
        nn.Sequential(
            *(linear([[1, 1], [1, -1]], [0, 0]), nn.ReLU(), linear([[1, 1], [1, -1]], [0, -0.5]), nn.ReLU()),
            linear([[1, 0.5], [-0.5, 1]], [0.2, 0]),
        ).eval(),
        (2,),
    )
    x = torch.tensor([[0.6, 0.4]], dtype=torch.float64)
    found = boxes.propagate(steps, Box(x - 0.3, x + 0.3))
    assert (found[-1].low[0, 0] - found[-1].high[0, 1]).item() == pytest.approx(-0.3)
    assert boxes.margins(steps, found, torch.tensor([0]))[0, 1].item() == pytest.approx(0.25)


class Activated(nn.BatchNorm2d):
    """A BatchNorm with an activation of its own, which no bound may pass as if it were torch's."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.silu(super().forward(x))


class Alternating(nn.Module):
    """A network of which torch.fx records something else than it computes."""

    def __init__(self):
        super().__init__()
        self.layer, self.calls = nn.Linear(3072, 4), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x.flatten(1)) * (self.calls % 7 + 1)


def _run(network: nn.Module, epsilon: float = 0.01) -> Tensor:
    x = torch.rand(1, *COLOR.shape)
    return certification.crown(network, x, torch.tensor([0]), epsilon=epsilon)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: _run(narrow("LeNet"), -0.1), "expected a radius epsilon in [0, 1], in pixels, got -0.1"),
        (lambda: _run(narrow("LeNet"), 8), "expected a radius epsilon in [0, 1], in pixels, got 8"),
        (lambda: _run(nn.Sequential(nn.Conv2d(3, 2, 3), nn.Softmax(1))), "no bounds are known for Softmax"),
        (lambda: _run(Squared(divides=False)), "no bounds are known for mul (mul)"),
        (lambda: _run(Squared(divides=True)), "no bounds are known for truediv (truediv)"),
        (lambda: _run(nn.Sequential(nn.Flatten(), nn.Linear(3072, 1))), "expected logits of at least 2 classes, got 1"),
        (lambda: _run(nn.Sequential(nn.Flatten(), nn.Linear(3072, 4), nn.Tanh())), "boxes (ibp) are, and randomized"),
        (lambda: _run(nn.Sequential(Activated(3), nn.Flatten(), nn.Linear(3072, 4)).eval()), "known for Activated"),
        (lambda: _run(Alternating()), "folding BatchNorm changes what Alternating computes"),
        (lambda: _run(defenses.add_noise(narrow("LeNet"), 0.1)), "the network draws random numbers"),
        (
            lambda: certification.crown_ibp(
                narrow("LeNet"), torch.rand(1, 3, 32, 32), torch.tensor([0]), epsilon=0.1, slope="x"
            ),
            "expected slope adaptive | same, got 'x'",
        ),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        call()
