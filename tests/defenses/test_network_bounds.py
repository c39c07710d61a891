"""The composed bound of a network: against exact constants, and never below a measured ratio."""

import pytest
import torch
from torch import nn

from rqlib import attacks, models, quantization
from rqlib.core import layers
from rqlib.core.projections import L2
from rqlib.defenses import DDTReLU, DTReLU, certified_radius, lipschitz, measured_ratios
from rqlib.defenses.network_bounds import average_pool_norm
from rqlib.quantization.fake_quantize import Quantized
from tests.networks import COLOR, narrow


def toy(*parts: nn.Module) -> nn.Sequential:
    """Two inputs, two hidden units, one output; ``parts`` stand between the two linear layers."""
    first, last = nn.Linear(2, 2), nn.Linear(2, 1)
    first.weight.data, first.bias.data = torch.tensor([[1.0, 1], [1, 2]]), torch.tensor([0.5, 0])
    last.weight.data, last.bias.data = torch.tensor([[1.0, -1]]), torch.zeros(1)
    return nn.Sequential(first, *parts, last).double().eval()


def test_the_product_of_norms():
    found = lipschitz(toy(nn.ReLU()), (2,)).iloc[-1]
    assert found.constant == pytest.approx(3.702459174, rel=1e-4)
    assert found.offset == 0


def test_a_rounded_signal_has_an_affine_bound():
    """A hidden step of 0.25: ``3.702459 |dx| + 0.5``, never violated, though the ratio alone is unbounded."""
    format = quantization.INT(8)
    rounded = Quantized(format, torch.tensor(0.25 / format.unit))
    rounded.is_leaf = True
    network = toy(nn.ReLU(), rounded)
    bound = lipschitz(network, (2,)).iloc[-1]
    assert (bound.constant, bound.offset) == (pytest.approx(3.702459, rel=1e-4), pytest.approx(0.5, rel=1e-4))
    torch.manual_seed(0)
    x = torch.rand(100_000, 2, dtype=torch.float64)
    moved = torch.randn_like(x) * torch.logspace(-4, 0, 100_000, dtype=torch.float64)[:, None]
    with torch.no_grad():
        changes = (network(x + moved) - network(x)).norm(dim=1)
    assert (changes <= bound.constant * moved.norm(dim=1) + bound.offset).all()
    assert (changes / moved.norm(dim=1)).max() > 10 * bound.constant


POOLS = [
    (nn.AvgPool2d(2), (8, 8), 0.5),
    (nn.AvgPool2d(3, 2, 1), (8, 8), 0.503565),
    (nn.AvgPool2d(3, 1, 1), (8, 8), 0.921207),
    (nn.AdaptiveAvgPool2d(1), (8, 8), 0.125),
    (nn.AvgPool2d(3, 2, 1, count_include_pad=False), (7, 9), None),
    (nn.AdaptiveAvgPool2d((3, 2)), (7, 5), None),
    (nn.AvgPool2d((2, 3), (1, 2), (0, 1), ceil_mode=True), (6, 7), None),
]


@pytest.mark.parametrize(("pool", "image", "known"), POOLS)
def test_average_pools(pool, image, known):
    unit = torch.eye(image[0] * image[1], dtype=torch.float64).view(-1, 1, *image)
    exact = torch.linalg.matrix_norm(pool(unit).flatten(1).T, 2).item()
    assert average_pool_norm(pool, image) == pytest.approx(exact)
    assert known is None or exact == pytest.approx(known, abs=1e-6)


@pytest.mark.parametrize("name", ["SmallCNN", "ResNet_18", "LeNet"])
def test_no_measured_ratio_exceeds_the_bound(name):
    """Random steps and PGD, small and large."""
    model = narrow(name)
    bound = lipschitz(model, COLOR.shape).constant.iloc[-1]
    x, y = torch.rand(8, *COLOR.shape), torch.arange(8)
    for epsilon in (0.01, 1.0):
        ball = L2(epsilon)
        steepest = attacks.pgd(model, x, y, ball=ball, **attacks.pace(ball, 5))
        for moved in (steepest, (x + ball.sample(x)).clamp(0, 1)):
            with torch.no_grad():
                change = (model(moved) - model(x)).norm(dim=1)
            assert (change <= bound * (moved - x).flatten(1).norm(dim=1) + 1e-6).all()


def test_the_means_of_small_cnn_make_its_bound_four_times_smaller():
    model = models.build("SmallCNN", COLOR, seed=0).eval()
    rows = lipschitz(model, COLOR.shape).set_index("name").norm
    assert [norm for name, norm in rows.items() if norm == pytest.approx(0.5)] == pytest.approx([0.5, 0.5])
    assert rows["sub"] == 1
    assert rows["truediv"] == pytest.approx(1 / min(COLOR.std))


@pytest.mark.parametrize("nonnegative", ["unsigned", "zero_point"])
@pytest.mark.parametrize("format", ["INT_4", "POT_4", "FLOAT_6_E2", "FLOAT_6_E1_LEGACY"])
def test_a_quantized_network_stays_within_its_affine_bound(format, nonnegative):
    model = narrow("SmallCNN")
    pictures = torch.randint(256, (32, *COLOR.shape), dtype=torch.uint8)
    quantized = quantization.ptq(model, format, pictures, nonnegative=nonnegative)
    bound = lipschitz(quantized, COLOR.shape).iloc[-1]
    assert bound.offset > 0
    x = torch.rand(64, *COLOR.shape)
    for size in (1e-4, 1e-2, 1):
        moved = x + size * torch.randn_like(x)
        with torch.no_grad():
            change = (quantized(moved) - quantized(x)).norm(dim=1)
        assert (change <= bound.constant * (moved - x).flatten(1).norm(dim=1) + bound.offset).all()


@pytest.mark.parametrize("make", [lambda: DTReLU(3), lambda: DDTReLU(3)])
def test_networks_with_few_levels(make):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), make(), nn.Flatten(), nn.Linear(4 * 36, 3))
    x = torch.rand(256, 1, 6, 6)
    network(x)
    bound = lipschitz(network.eval(), (1, 6, 6)).iloc[-1]
    moved = x + 0.1 * torch.randn_like(x)
    with torch.no_grad():
        change = (network(moved) - network(x)).norm(dim=1)
    assert bound.offset > 0
    assert (change <= bound.constant * (moved - x).flatten(1).norm(dim=1) + bound.offset).all()


def test_the_certified_radius_of_a_linear_classifier_is_its_distance_to_the_boundary():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Identity(), nn.Linear(5, 3)).double().eval()
    x = torch.randn(20, 5, dtype=torch.float64)
    y = network(x).argmax(1)
    weight, logits = network[1].weight, network(x)
    for image, radius in enumerate(certified_radius(network, x, y)):
        label = int(y[image])
        distances = [
            ((logits[image, label] - logits[image, j]) / (weight[label] - weight[j]).norm()).item()
            for j in range(3)
            if j != label
        ]
        assert radius.item() == pytest.approx(min(distances), rel=1e-9)


def test_the_radius_uses_differences_of_rows():
    """Margin 1, row difference (1, -1.5, 0), constant 2 before: 0.277350."""
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)).double().eval()
    network[0].weight.data, network[0].bias.data = 2 * torch.eye(3).double(), torch.zeros(3).double()
    network[1].weight.data = torch.tensor([[1.0, -1.5, 0], [0, 0, 0]], dtype=torch.float64)
    network[1].bias.data = torch.tensor([1.0, 0], dtype=torch.float64)
    radius = certified_radius(network, torch.zeros(1, 3, dtype=torch.float64), torch.tensor([0]))
    assert radius.item() == pytest.approx(0.277350, rel=1e-4)


def test_wrong_images_have_no_radius():
    network = nn.Sequential(nn.Identity(), nn.Linear(5, 3)).eval()
    x = torch.randn(4, 5)
    wrong = (network(x).argmax(1) + 1) % 3
    assert not certified_radius(network, x, wrong).any()


def test_unknown_operations_are_named():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            return self.layer(x) * x

    with pytest.raises(ValueError, match="no Lipschitz constant is known for the operation mul"):
        lipschitz(Product(), (2,))


def test_folding_gives_the_smaller_bound():
    model = narrow("SmallCNN")
    assert any(layers.batchnorms(model))
    folded, plain = (lipschitz(model, COLOR.shape, fold=fold).constant.iloc[-1] for fold in (True, False))
    assert folded < plain


class Computed(nn.Module):
    """Logits that a function makes of two linear layers, of three values and of one."""

    def __init__(self, function):
        super().__init__()
        self.function, self.three, self.one = function, nn.Linear(12, 3), nn.Linear(12, 1)
        self.register_buffer("factors", torch.tensor([1.0, -2.0, 3.0]))

    def forward(self, x):
        x = x.flatten(1)
        return self.function(self.three(x), self.one(x), self.factors)


@pytest.mark.parametrize(
    "function",
    [
        lambda h, one, factors: h + h,
        lambda h, one, factors: torch.cat([h, h], 1),
        lambda h, one, factors: one * factors,
        lambda h, one, factors: one + factors,
        lambda h, one, factors: torch.add(h, one, alpha=3),
        lambda h, one, factors: torch.add(factors, h, alpha=3),
        lambda h, one, factors: h[:, [0, 0, 1]],
        lambda h, one, factors: nn.functional.elu(h, 3.0),
        lambda h, one, factors: nn.functional.leaky_relu(h, 3.0),
        lambda h, one, factors: h * h.shape[1] / 2,
    ],
)
def test_signals_that_are_used_twice_repeated_or_stretched_have_a_bound_that_holds(function):
    torch.manual_seed(0)
    model, x = Computed(function).eval(), torch.rand(8, 3, 2, 2)
    found = measured_ratios.ratios(model, x, model(x).argmax(1), sizes=(0.5,), steps=3)
    assert 0.5 < found.used.max() <= 1 + 1e-4


@pytest.mark.parametrize(
    "function",
    [lambda h, one, factors: h * h, lambda h, one, factors: 1 / h, lambda h, one, factors: torch.mul(h, other=9)],
)
def test_products_of_signals_have_no_known_constant(function):
    with pytest.raises(ValueError, match="no Lipschitz constant is known for the operation"):
        lipschitz(Computed(function), (3, 2, 2))


def test_slopes_of_elu_and_windows_of_dilated_max_pools():
    assert lipschitz(nn.Sequential(nn.ELU(3.0), nn.Conv2d(3, 3, 1)), (3, 4, 4)).norm[0] == 3
    pool = nn.MaxPool2d((1, 3), (1, 2), dilation=(1, 2))  # every third of its values is in three windows
    assert lipschitz(nn.Sequential(pool, nn.Conv2d(3, 3, 1)), (3, 4, 9)).norm[0] == pytest.approx(3**0.5)


def test_the_radius_is_that_of_the_weight_with_batchnorm_folded_in():
    plain, x = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval(), torch.rand(8, 3, 2, 2)
    norm = nn.BatchNorm1d(3).eval()
    norm.running_var.fill_(0.01)
    normalized = nn.Sequential(*plain, norm).eval()
    y = plain(x).argmax(1)
    torch.testing.assert_close(certified_radius(normalized, x, y), certified_radius(plain, x, y), rtol=1e-3, atol=1e-4)


class Branches(nn.Module):
    """The layer that writes the logits is defined first; another branch is computed just before it."""

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.head, self.body, self.side = nn.Linear(4, 3), nn.Linear(12, 4), nn.Linear(12, 1)
        nn.init.zeros_(self.side.weight)
        self.scale = scale

    def forward(self, x):
        h = self.body(x.flatten(1))
        self.side(x.flatten(1))
        z = self.head(h)
        return z if self.scale == 1 else z * self.scale


def test_the_radius_follows_the_layer_that_writes_the_logits():
    torch.manual_seed(0)
    model, x = Branches().eval(), torch.rand(8, 3, 2, 2)
    plain = nn.Sequential(nn.Flatten(), model.body, model.head)
    y = model(x).argmax(1)
    torch.testing.assert_close(certified_radius(model, x, y), certified_radius(plain, x, y))
    with pytest.raises(ValueError, match="expected a network that ends in a linear layer, got the operation mul"):
        certified_radius(Branches(10.0), x, y)
