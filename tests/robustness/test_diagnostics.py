"""An honest network passes every check; each deliberately broken defense fails the right one."""

import pandas
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rqlib import attacks, quantization
from rqlib.attacks import ascent, autoattack, methods
from rqlib.core.projections import L2
from rqlib.robustness import diagnostics
from rqlib.robustness.diagnostics import case
from tests import robust_networks
from tests.robust_networks import BALL

FEW = {"count": 40, "steps": 6}  # of randomized networks every step costs twenty forwards
COLUMNS = ["number", "name", "status", "value", "meaning"]


def check(model, *, count=150, ball=BALL, **options):
    """The table, by number."""
    table = diagnostics.run(model, *robust_networks.images(count), ball=ball, **options)
    assert list(table.columns) == COLUMNS
    return table.set_index("number")


def numbers(table, status):
    return set(table.index[table.status == status])


class Defended(nn.Module):
    """The naturally trained network behind something that hides its gradients."""

    def __init__(self):
        super().__init__()
        self.network = robust_networks.trained(adversarial=False)


class Rounded(Defended):
    """Rounds its input to five levels, without a straight-through gradient."""

    def forward(self, x):
        return self.network((x * 4).round() / 4)


class Saturated(Defended):
    """Logits times 10,000."""

    def forward(self, x):
        return self.network(x) * 1e4


class NoisyOutput(Defended):
    """Noise of constant size on the logits."""

    def forward(self, x):
        logits = self.network(x)
        return logits + 4 * torch.randn_like(logits)


class FrozenNoise(Defended):
    """The same noise in every call."""

    def forward(self, x):
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        return self.network((x + 0.3 * noise).clamp(0, 1))


class Clamped(Defended):
    """Pixels amplified and clamped: the gradient is cut wherever the clamp holds, though epsilon reaches beyond."""

    def forward(self, x):
        return self.network((12 * (x - 0.5) + 0.5).clamp(0, 1))


class Detached(Defended):
    """Logits without a gradient."""

    def forward(self, x):
        return self.network(x).detach()


class BrokenRoot(Defended):
    """The same logits, but the derivative of a root at 0 makes their gradient NaN."""

    def forward(self, x):
        return self.network(x) + (x - x.detach()).square().sqrt().sum((1, 2, 3))[:, None]


flat = pytest.mark.filterwarnings("ignore:the gradient of the loss is exactly zero")


def test_honest_network_passes_everything():
    history = pandas.DataFrame({"validation_robust_accuracy": [0.3, 0.6, 0.7, 0.69]})
    table = check(
        robust_networks.trained(adversarial=True),
        full=True,
        history=history,
        others={"natural": robust_networks.trained(adversarial=False)},
    )
    assert list(table.index) == list(range(1, 21))
    skipped = {13, 14} | (set() if autoattack.is_installed() else {11})
    assert numbers(table, "SKIP") == skipped
    assert numbers(table, "PASS") == set(range(1, 21)) - skipped, table.to_string()


def test_fast_subset_skips_what_takes_longer_and_says_why():
    table = check(robust_networks.trained(adversarial=True), count=40)
    assert {5, 6, 11, 13} <= numbers(table, "SKIP")
    assert table.value[5] == "takes longer: full=True"
    assert "no other networks" in table.value[10]
    assert "no training log" in table.value[17]
    assert not numbers(table, "FAIL")


@flat
def test_hard_rounding_without_straight_through():
    with pytest.warns(UserWarning, match="the gradient of the loss is exactly zero for every image"):
        table = check(Rounded(), others={"natural": robust_networks.trained(adversarial=False)})
    assert {7, 8, 10, 15, 16, 20} <= numbers(table, "FAIL"), table.to_string()
    assert "zero for 100.0%" in table.value[8]
    assert {1, 2, 12, 18, 19} <= numbers(table, "PASS")


@flat
def test_saturated_logits():
    table = check(Saturated())
    assert 8 in numbers(table, "FAIL"), table.to_string()
    assert {1, 2, 9, 12, 15, 18, 19} <= numbers(table, "PASS"), "the DLR loss does not notice the scale"


def test_output_noise_without_eot():
    table = check(NoisyOutput(), **FEW)
    assert table.status[12] == "FAIL"
    assert "attacked without EOT; forced to 20" in table.value[12]
    assert table.status[14] == "PASS"
    with_eot = check(NoisyOutput(), eot_samples=20, **FEW)
    assert with_eot.status[12] == "PASS"


def test_frozen_noise():
    table = check(FrozenNoise(), **FEW)
    assert table.status[12] == "FAIL"
    assert "frozen noise" in table.value[12]
    assert table.status[14] == "FAIL", "ten predictions with the same noise are one"


@flat
def test_clamp_that_cuts_gradients():
    table = check(Clamped())
    assert 15 in numbers(table, "FAIL"), table.to_string()
    assert {1, 2, 12, 18, 19} <= numbers(table, "PASS")


def test_random_resize():
    torch.manual_seed(0)
    table = check(robust_networks.RandomResize(), **FEW)
    assert table.status[12] == "FAIL"
    assert "randomized" in table.value[12]


def test_random_resize_with_eot_draws_one_after_another(monkeypatch):
    torch.manual_seed(0)
    options = {"count": 20, "steps": 2, "eot_samples": 20}
    assert check(robust_networks.RandomResize(), **options).status[12] == "PASS"
    monkeypatch.setattr(ascent, "draws_once", lambda model, image: False)
    table = check(robust_networks.RandomResize(), **options)
    assert table.status[12] == "FAIL"
    assert "its 20 EOT samples are all the same draw" in table.value[12]


@flat
def test_detached_output():
    with pytest.warns(UserWarning, match="the gradient of the loss is exactly zero for every image"):
        table = check(Detached(), count=60)
    assert {7, 8, 20} <= numbers(table, "FAIL"), table.to_string()
    assert "zero for 100.0%" in table.value[8]


@pytest.mark.filterwarnings("ignore:the gradient of the loss is NaN")
def test_gradients_that_are_nan_are_no_robustness():
    with pytest.warns(UserWarning, match="the gradient of the loss is NaN or infinite for 60 of 60 images"):
        table = check(BrokenRoot(), count=60)
    assert {7, 8} <= numbers(table, "FAIL"), table.to_string()
    assert "NaN or infinite for 100.0%; zero for 100.0%" in table.value[8]


def test_quantized_networks_are_climbed_past_the_clipping_and_need_a_float_twin():
    model, (x, _) = robust_networks.trained(adversarial=True), robust_networks.images(60)
    network = quantization.ptq(model, "INT_4", x)
    table = check(network, count=60)
    assert table.status[15] == "WARN", table.to_string()
    assert "past the clipping" in table.value[15]
    assert "no float twin was given" in table.value[15]
    assert check(network, count=60, twins={"float": model}).status[15] in ("PASS", "FAIL")


def test_clipping_that_hides_gradients_is_found():
    model, (x, _) = robust_networks.trained(adversarial=False), robust_networks.images(60)
    network = quantization.ptq(model, "INT_8", x)
    for point in network.quantizers.children():
        point.scale.mul_(0.05)  # nearly everything is clipped, and its gradient is zero
    table = check(network, count=150)
    assert table.status[15] == "FAIL", table.to_string()


def test_eot_samples_level_off():
    torch.manual_seed(1)
    table = check(NoisyOutput(), count=30, steps=4, eot_samples=20, full=True)
    assert table.status[13] in ("PASS", "WARN")
    assert "cosine" in table.value[13]
    assert table.status[14] == "PASS"


def test_twins_are_transferred():
    table = check(Rounded(), twins={"float": robust_networks.trained(adversarial=False)})
    assert table.status[15] == "FAIL"
    assert "minimum robust accuracy" in table.value[15]


test_twins_are_transferred = flat(test_twins_are_transferred)


@pytest.mark.parametrize(
    ("robust", "status"),
    [([0.2, 0.4, 0.45], "PASS"), ([0.2, 0.5, 0.44, 0.43], "WARN"), ([0.2, 0.45, 0.02], "FAIL")],
)
def test_overfitting_flags(robust, status):
    history = pandas.DataFrame({"validation_robust_accuracy": robust})
    assert check(robust_networks.trained(adversarial=True), count=20, history=history).status[17] == status


def fake(monkeypatch, **replaced):
    for name, function in replaced.items():
        monkeypatch.setattr(attacks, name, function)


def test_attack_that_leaves_the_ball(monkeypatch):
    honest = methods.pgd

    def outside(model, x, y, **options):
        return honest(model, x, y, **options) + 0.05

    fake(monkeypatch, pgd=outside)
    table = check(robust_networks.trained(adversarial=True), count=20)
    assert {1, 2, 18} <= numbers(table, "FAIL")


def test_attack_that_forgets_its_step(monkeypatch):
    honest = methods.pgd

    def forgetful(model, x, y, **options):
        return honest(model, x, y, **(options | {"steps": 0, "random_start": False}))

    fake(monkeypatch, pgd=forgetful)
    table = check(robust_networks.trained(adversarial=False), count=100)
    assert {4, 7, 18} <= numbers(table, "FAIL")


def test_attack_that_changes_state(monkeypatch):
    honest = methods.pgd

    def careless(model, x, y, **options):
        torch.rand(1)
        next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
        model.train()
        return honest(model, x, y, **options)

    fake(monkeypatch, pgd=careless)
    model = robust_networks.untrained()
    table = check(model, count=20)
    assert table.status[19] == "FAIL"
    assert "gradients" in table.value[19]
    assert "random state" in table.value[19]
    assert "modes" in table.value[19]


def test_l2():
    table = check(robust_networks.trained(adversarial=True), count=60, ball=L2(0.5))
    assert not numbers(table, "FAIL"), table.to_string()


def test_gain_needs_two_standard_errors():
    few, many = torch.zeros(100, dtype=torch.bool), torch.zeros(100, dtype=torch.bool)
    many[:2] = True
    assert case.gain(many, few) == (pytest.approx(0.02), False)
    many[:10] = True
    assert case.gain(many, few) == (pytest.approx(0.1), True)
    assert case.gain(few, many)[1] is False


def test_loss_surface_is_highest_up_the_gradient():
    model, (x, y) = robust_networks.trained(adversarial=True), robust_networks.images(30)
    surface = diagnostics.loss_surface(model, x, y, ball=BALL, points=5)
    assert list(surface.columns) == ["gradient", "random", "loss"]
    assert len(surface) == 25
    rise = surface.groupby("gradient").loss.mean()
    assert rise.is_monotonic_increasing
    center = surface[(surface.gradient == 0) & (surface.random == 0)].loss.item()
    with torch.no_grad():
        assert center == pytest.approx(F.cross_entropy(model(x), y).item(), rel=1e-5)


def test_bad_input():
    model, (x, y) = robust_networks.untrained(), robust_networks.images(4)
    with pytest.raises(ValueError, match="expected at least one image to check"):
        diagnostics.run(model, x[:0], y[:0], ball=BALL)
    with pytest.raises(ValueError, match=r"expected x in \[0, 1\]"):
        diagnostics.run(model, x * 255, y, ball=BALL)


def test_numbers_are_one_to_twenty():
    assert [check.number for check in diagnostics.CHECKS] == list(range(1, 21))
    assert all(check.function.__doc__.startswith(f"{check.number}. ") for check in diagnostics.CHECKS)
