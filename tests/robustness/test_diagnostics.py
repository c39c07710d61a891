"""An honest network passes every check; each deliberately broken defense fails the right one."""

import re
import warnings

import pandas
import pytest
import torch

from rqlib import attacks, quantization, robustness
from rqlib.attacks import ascent, autoattack, methods
from rqlib.core.projections import L2
from rqlib.robustness.diagnostics import case, sanity
from tests import robust_networks
from tests.robust_networks import BALL, Defended, random_resize

FEW = {"count": 24, "steps": 4}  # of randomized networks every step costs twenty forwards
HONEST = {1, 2, 12, 18, 19}  # checks that a defense does not fail by hiding its gradients
COLUMNS = ["number", "name", "status", "value", "meaning"]


def check(model, *, count=60, ball=BALL, **options):
    """The table, by number."""
    table = robustness.diagnose(model, *robust_networks.images(count), ball=ball, **options)
    assert list(table.columns) == COLUMNS
    return table.set_index("number")


def numbers(table, status):
    return set(table.index[table.status == status])


def natural():
    return robust_networks.trained(adversarial=False)


def rounded(network, x):
    """Rounds its input to five levels, without a straight-through gradient."""
    return network((x * 4).round() / 4)


def saturated(network, x):
    """Logits times 10,000."""
    return network(x) * 1e4


def noisy(network, x):
    """Noise of constant size on the logits."""
    logits = network(x)
    return logits + 4 * torch.randn_like(logits)


def frozen_noise(network, x):
    """The same noise in every call."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return network((x + 0.3 * noise).clamp(0, 1))


def clamped(network, x):
    """Pixels amplified and clamped: the gradient is cut wherever the clamp holds, though epsilon reaches beyond."""
    return network((12 * (x - 0.5) + 0.5).clamp(0, 1))


def detached(network, x):
    """Logits without a gradient."""
    return network(x).detach()


def broken_root(network, x):
    """The same logits, but the derivative of a root at 0 makes their gradient NaN."""
    return network(x) + (x - x.detach()).square().sqrt().sum((1, 2, 3))[:, None]


def test_honest_network_passes_everything():
    history = pandas.DataFrame({"validation_robust_accuracy": [0.3, 0.6, 0.7, 0.69]})
    honest, others = robust_networks.trained(adversarial=True), {"natural": natural()}
    table = check(honest, full=True, history=history, others=others)
    assert all(one.function.__doc__.startswith(f"{one.number}. ") for one in robustness.CHECKS)
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


DEFENSES = {  # defense, options, checks that fail, checks that pass, words of a check's value
    "rounding": (rounded, {"others": natural}, {7, 8, 10, 15, 16, 20}, HONEST, {8: "zero for 100.0%"}),
    "rounding with a twin": (rounded, {"twins": natural}, {15}, HONEST, {15: "minimum robust accuracy"}),
    "saturated logits": (saturated, {}, {8}, HONEST | {9, 15}, {}),
    "clamp": (clamped, {}, {15}, HONEST, {}),
    "detached logits": (detached, {}, {7, 8, 20}, {1}, {8: "zero for 100.0%"}),
    "NaN gradient": (broken_root, {}, {7, 8}, {1}, {8: "NaN or infinite for 100.0%; zero for 100.0%"}),
    "noise": (noisy, FEW, {12}, {14}, {12: "attacked without EOT; forced to 20"}),
    "noise, attacked with EOT": (noisy, FEW | {"eot_samples": 20}, set(), {12, 14}, {}),
    "frozen noise": (frozen_noise, FEW, {12, 14}, set(), {12: "frozen noise", 14: "the same noise in ten"}),
    "random resize": (random_resize, FEW, {12}, set(), {12: "randomized"}),
}
WARNINGS = {
    "rounding": "the gradient of the loss is exactly zero for every image",
    "detached logits": "the gradient of the loss is exactly zero for every image",
    "NaN gradient": "the gradient of the loss is NaN or infinite for 60 of 60 images",
}


@pytest.mark.parametrize("name", DEFENSES)
def test_a_broken_defense_fails_the_right_checks(name):
    defense, options, fail, passed, words = DEFENSES[name]
    options = {key: {"natural": value()} if callable(value) else value for key, value in options.items()}
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        table = check(Defended(defense), **options)
    assert fail <= numbers(table, "FAIL"), table.to_string()
    assert passed <= numbers(table, "PASS"), table.to_string()
    assert all(text in table.value[number] for number, text in words.items()), table.to_string()
    assert any(WARNINGS.get(name, "") in text for text in ["", *(str(one.message) for one in caught)])


def test_eot_draws_that_are_one_and_the_same_are_found(monkeypatch):
    torch.manual_seed(0)
    options = {"count": 20, "steps": 2, "eot_samples": 20}
    assert check(Defended(random_resize), **options).status[12] == "PASS"
    monkeypatch.setattr(ascent, "draws_once", lambda model, image: False)
    table = check(Defended(random_resize), **options)
    assert table.status[12] == "FAIL"
    assert "its 20 EOT samples are all the same draw" in table.value[12]


def test_quantized_networks_are_climbed_past_the_clipping_and_need_a_float_twin():
    model, (x, _) = robust_networks.trained(adversarial=True), robust_networks.images(60)
    network = quantization.ptq(model, "INT_4", x)
    table = check(network, count=30)
    assert table.status[15] == "WARN", table.to_string()
    assert "past the clipping" in table.value[15]
    assert "no float twin was given" in table.value[15]
    assert check(network, count=30, twins={"float": model}).status[15] in ("PASS", "FAIL")


def test_clipping_that_hides_gradients_is_found():
    network = quantization.ptq(natural(), "INT_8", robust_networks.images(60)[0], ranges="minmax", nonnegative="signed")
    for point in network.quantizers.children():
        point.scale.mul_(0.05)  # nearly everything is clipped, and its gradient is zero
    table = check(network, count=60)
    assert table.status[15] == "FAIL", table.to_string()


def test_eot_samples_level_off():
    torch.manual_seed(1)
    table = check(Defended(noisy), count=12, steps=2, eot_samples=20, full=True)
    assert table.status[13] in ("PASS", "WARN")
    assert "cosine" in table.value[13]
    assert table.status[14] == "PASS"


@pytest.mark.parametrize(
    ("robust", "status"),
    [([0.2, 0.4, 0.45], "PASS"), ([0.2, 0.5, 0.44, 0.43], "WARN"), ([0.2, 0.45, 0.02], "FAIL")],
)
def test_overfitting_flags(robust, status):
    history = pandas.DataFrame({"validation_robust_accuracy": robust})
    assert sanity.overfitting(case.Case(*[None] * 6, history=history)).status == status


def outside(model, x, y, **options):
    """Leaves the ball."""
    return methods.pgd(model, x, y, **options) + 0.05


def forgetful(model, x, y, **options):
    """Takes no step."""
    return methods.pgd(model, x, y, **(options | {"steps": 0, "random_start": False}))


def careless(model, x, y, **options):
    """Changes random state, gradients and modes."""
    torch.rand(1)
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    model.train()
    return methods.pgd(model, x, y, **options)


@pytest.mark.parametrize(
    ("attack", "network", "fail", "words"),
    [
        (outside, natural, {1, 2, 18}, {2: "images left the ball"}),
        (forgetful, natural, {4, 7, 18}, {}),
        (careless, robust_networks.untrained, {19}, {19: "changed: gradients, modes, random state"}),
    ],
)
def test_a_broken_attack_fails_the_right_checks(monkeypatch, attack, network, fail, words):
    monkeypatch.setattr(attacks, "pgd", attack)
    table = check(network(), count=40)
    assert fail <= numbers(table, "FAIL"), table.to_string()
    assert all(text in table.value[number] for number, text in words.items()), table.to_string()


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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, y: (x[:0], y[:0]), "expected at least one image to check"),
        (lambda x, y: (x * 255, y), "expected x in [0, 1]"),
    ],
)
def test_bad_input_says_what_was_expected(change, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        robustness.diagnose(robust_networks.untrained(), *change(*robust_networks.images(4)), ball=BALL)
