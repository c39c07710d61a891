"""A trained network on real digits, quantized: accuracies, options, training on, and the restartable sweep."""

import copy
import os
import subprocess
import sys
import textwrap
import time
import weakref
from pathlib import Path

import pandas
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from rqlib import data, measures, models, quantization, training
from rqlib.core import files, layers, runtime
from rqlib.quantization import FLOAT, INT, POT, calibration, fake_quantize, integer, post_training, sweeping
from rqlib.quantization.fake_quantize import Quantized
from rqlib.training import objectives, recipes
from tests import quantized_networks

ROOT = Path(__file__).parents[2]


def descend(model, split, epochs, lr, batch_size=50):
    """Plain SGD, a few epochs, the learning rate rising and falling."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = epochs * -(-len(split.labels) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    model.train()
    for epoch in range(epochs):
        order = torch.Generator().manual_seed(epoch)
        for x, y in data.batches(split.images, split.labels, batch_size, shuffle=True, rng=order):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return model.eval()


@pytest.fixture(scope="module", autouse=True)
def float32():
    with runtime.using("cpu", "float32"):
        yield


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def trained(digits):
    torch.manual_seed(0)
    return descend(models.build("ResNet_18", digits.spec, width=0.25), digits.train, epochs=4, lr=0.05)


@pytest.fixture(scope="module")
def scored(trained, digits):
    chosen = ["INT_16", "INT_8", "INT_4", "INT_3", "INT_2", "POT_2", "FLOAT_8_E1", "FLOAT_8_E4", "FLOAT_8_E1_LEGACY"]
    frame = sweeping.sweep(trained, chosen, digits.train.images[:256], digits.test.images, digits.test.labels)
    return frame.set_index("format", drop=False)


def small(**options):
    """A network of a few layers, pictures, labels: for what does not need a trained one."""
    pictures = quantized_networks.images(12)
    return quantized_networks.network("SmallCNN", 1.0, **options), pictures, torch.arange(12) % 10


def test_eight_bits_keep_the_accuracy_and_two_lose_it(scored):
    assert scored.float_accuracy["INT_8"] > 0.9
    assert abs(scored.accuracy_loss["INT_8"]) <= 0.01
    assert abs(scored.accuracy_loss["INT_16"]) <= 0.004  # one image of 360
    assert abs(scored.accuracy_loss["FLOAT_8_E4"]) <= 0.01
    assert scored.accuracy["INT_2"] < 0.3
    losses = scored.logit_error[["INT_16", "INT_8", "INT_4", "INT_3"]]
    assert losses.is_monotonic_increasing
    assert scored.agreement["INT_8"] > 0.99


def test_legacy_floats_are_worse_than_the_right_ones(scored):
    assert scored.logit_error["FLOAT_8_E1_LEGACY"] > 5 * scored.logit_error["FLOAT_8_E1"]
    assert scored.relative_error_macs["FLOAT_8_E1_LEGACY"] > 5 * scored.relative_error_macs["FLOAT_8_E1"]


def test_formats_of_equal_values_are_computed_once(scored):
    assert scored.duplicate_of["FLOAT_8_E1"] == "INT_8"
    assert scored.seconds["FLOAT_8_E1"] == 0
    assert scored.logit_error["FLOAT_8_E1"] == scored.logit_error["INT_8"]
    assert scored.kind["FLOAT_8_E1"] == "FLOAT"
    assert scored.accuracy["POT_2"] == scored.accuracy["INT_2"]


def test_rows_say_what_they_are(scored, trained):
    assert scored.bits.tolist() == [16, 8, 4, 3, 2, 2, 8, 8, 8]
    assert scored.significant_bits["FLOAT_8_E4"] == 4
    assert scored.coded_bits["INT_4"] == 4 * sum(layer.weight.numel() for _, layer in layers.weighted_layers(trained))
    assert scored.js_macs_normalized["INT_4"] == 1
    assert scored.js_macs["INT_2"] > scored.js_macs["INT_4"] > scored.js_macs["INT_8"] > 0
    assert set(scored.arithmetic) <= {"int8", "float32"}
    assert scored.arithmetic["FLOAT_8_E4"] == "float32"


def test_a_row_is_what_ptq_gives(scored, trained, digits):
    network = post_training.ptq(trained, "FLOAT_8_E4", digits.train.images[:256])
    accuracy = measures.accuracy(network, digits.test.images, digits.test.labels)
    assert accuracy == pytest.approx(scored.accuracy["FLOAT_8_E4"], abs=2 / len(digits.test.labels))
    lowered = integer.lower(network, arithmetic="float32")
    accuracy = measures.accuracy(lowered, digits.test.images, digits.test.labels)
    assert accuracy == pytest.approx(scored.accuracy["FLOAT_8_E4"])


@pytest.mark.parametrize("ranges", ["minmax", "percentile", "mse"])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_options_keep_the_accuracy_at_eight_bits(trained, digits, ranges, granularity):
    options = {"ranges": ranges, "granularity": granularity, "bias": "seed"}
    network = post_training.ptq(trained, INT(8), digits.train.images[:128], **options)
    assert measures.accuracy(network, digits.test.images, digits.test.labels) > 0.9


def test_training_on_the_grid_wins_accuracy_back(trained, digits, scored):
    network = post_training.ptq(trained, INT(4), digits.train.images[:256])
    before = scored.accuracy["INT_4"]
    recipe = recipes.Recipe(1, batch_size=50, lr=0.001, nesterov=True, schedule="triangle", augment=False)
    training.fit(network, digits, objectives.natural, recipe)
    after = measures.accuracy(network, digits.test.images, digits.test.labels)
    assert after > before + 0.05
    layer = network.stem.conv
    scale = fake_quantize.quantizer(layer).scale
    assert_close(INT(4).round(layer.weight / scale) * scale, layer.weight, rtol=0, atol=0)
    lowered = integer.lower(network, arithmetic="float32")
    assert measures.accuracy(lowered, digits.test.images, digits.test.labels) == pytest.approx(after, abs=0.01)


def test_every_weight_and_signal_is_on_its_grid_and_gradients_reach_the_image():
    model, pictures, labels = small()
    network = post_training.ptq(model, FLOAT(6, 2), pictures, granularity="channel")
    seen = []
    names = [f"quantizers.{name}" for name, _ in network.quantizers.named_children()]
    x = (pictures / 255).requires_grad_()
    with layers.watching(network, names, lambda name, _, signal: seen.append((network.get_submodule(name), signal))):
        F.cross_entropy(network(x), labels).backward()
    for point, signal in seen:
        assert point.format == FLOAT(6, 2)
        assert quantized_networks.levels_of(point.format, point.scale, signal.detach())[1].max() < 1e-5
    assert x.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_the_model_is_left_alone_and_the_copy_can_be_copied():
    model, pictures, _ = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    network = post_training.ptq(model, "INT_4", pictures, bias="seed")
    twin = copy.deepcopy(network)
    assert torch.equal(twin(pictures / 255), network(pictures / 255))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_weights_alone():
    model, pictures, _ = small()
    network = post_training.ptq(model, "INT_4", pictures, activations=False)
    assert not any(
        isinstance(module, Quantized) for name, module in network.named_modules() if "parametriz" not in name
    )
    assert all(fake_quantize.quantizer(layer).format == INT(4) for _, layer in layers.weighted_layers(network))
    assert type(network) is type(model)


def test_weights_and_signals_can_have_formats_of_their_own():
    model, pictures, _ = small()
    first, *_ = (name for name, _ in layers.weighted_layers(model))
    network = post_training.ptq(model, {first: "POT_4"}, pictures, activations="INT_8")
    kinds = {name: fake_quantize.quantizer(layer) for name, layer in layers.weighted_layers(network)}
    assert kinds.pop(first).format == POT(4)
    assert set(kinds.values()) == {None}
    assert {point.format for point in network.quantizers.children()} == {INT(8)}


class Masked(nn.Module):
    def forward(self, weight):
        return weight * (weight.abs() > weight.abs().median())


def test_a_pruned_network_stays_pruned():
    model, pictures, _ = small()
    for _, layer in layers.weighted_layers(model):
        nn.utils.parametrize.register_parametrization(layer, "weight", Masked())
    network = post_training.ptq(model, "INT_8", pictures)
    for name, layer in layers.weighted_layers(network):
        zeros = model.get_submodule(name).weight == 0
        assert zeros.float().mean() >= 0.49
        assert not layer.weight[zeros].any()
        assert nn.utils.parametrize.is_parametrized(model.get_submodule(name), "weight")


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ("FLOAT_8_E9", {}, r"FLOAT_8_E9: exponent bits must be 1\.\.7"),
        ("INT_1", {}, r"INT_1: bits must be 2\.\.32"),
        ("INT_8", {"granularity": "row"}, r"expected granularity tensor \| channel, got 'row'"),
        ("INT_8", {"bias": "int"}, r"expected bias float \| seed, got 'int'"),
        (
            "INT_8",
            {"bias": "seed", "activations": False},
            "bias='seed' scales by s_x s_w and so needs quantized signals",
        ),
        (
            {"stem": "INT_8"},
            {"activations": False},
            r"no convolution or linear layer is named \['stem'\]; there are features",
        ),
        ({}, {}, "weights have a format a layer; say which the signals take"),
    ],
)
def test_impossible_requests_are_refused(arguments, options, message):
    model, pictures, _ = small()
    with pytest.raises(ValueError, match=message):
        post_training.ptq(model, arguments, pictures, **options)


def test_a_sweep_gives_the_same_numbers_under_every_policy():
    model, pictures, labels = small()
    frames = []
    for precision in ("float32", "bfloat16"):
        with runtime.using("cpu", precision):
            frame = sweeping.sweep(model, ["INT_8", "INT_12", "FLOAT_8_E4", "POT_8"], pictures, pictures, labels)
        frames.append(frame.drop(columns="seconds"))
    pandas.testing.assert_frame_equal(*frames, check_exact=True)


def test_the_whole_grid_on_a_small_network():
    model, pictures, labels = small()
    frame = sweeping.sweep(model, quantization.GRID, pictures, pictures, labels, measures=["js", "js_legacy"])
    assert frame.format.tolist() == [format.name for format in quantization.GRID]
    assert not frame.drop(columns="duplicate_of").isna().any(axis=None)
    by_format = frame.set_index("format")
    assert by_format.logit_error["INT_16"] < by_format.logit_error["INT_8"] < by_format.logit_error["INT_4"]
    assert by_format.js_legacy_macs["INT_12"] < by_format.js_legacy_macs["INT_4"]


def test_a_sweep_goes_on_where_it_stopped(tmp_path, monkeypatch):
    model, pictures, labels = small()
    chosen = ["INT_8", "FLOAT_8_E1", "POT_4", "FLOAT_6_E2"]
    whole = sweeping.sweep(model, chosen, pictures, pictures, labels)
    path, calls, lower = tmp_path / "rows.pt", [], integer.lower

    def counted(network, **options):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(options)
        return lower(network, **options)

    monkeypatch.setattr(integer, "lower", counted)
    with pytest.raises(KeyboardInterrupt):
        sweeping.sweep(model, chosen, pictures, pictures, labels, checkpoint=path)
    assert [*files.load_tensors(path)["rows"]] == [("", "INT_8"), ("", "FLOAT_8_E1"), ("", "POT_4")]
    calls.clear()
    resumed = sweeping.sweep(model, chosen, pictures, pictures, labels, checkpoint=path)
    assert len(calls) == 1
    pandas.testing.assert_frame_equal(resumed.drop(columns="seconds"), whole.drop(columns="seconds"), check_exact=True)
    with pytest.raises(ValueError, match="belongs to another sweep: options"):
        sweeping.sweep(model, chosen, pictures, pictures, labels, checkpoint=path, granularity="channel")


KILLED = """
    import sys
    from rqlib import quantization
    from tests.quantization import test_post_training
    model, pictures, labels = test_post_training.small()
    quantization.sweep(model, quantization.GRID, pictures, pictures, labels, checkpoint=sys.argv[1])
"""


def test_a_sweep_that_is_killed_resumes_to_the_same_numbers(tmp_path):
    path, (model, pictures, labels) = tmp_path / "rows.pt", small()
    command = [sys.executable, "-c", textwrap.dedent(KILLED), path]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()  # kill -9
    process.wait()
    killed = files.load_tensors(path)["rows"]
    chosen = quantization.GRID[: len(killed) + 2]
    assert 0 < len(killed) < len(quantization.GRID)
    resumed = sweeping.sweep(model, chosen, pictures, pictures, labels, checkpoint=path)
    whole = sweeping.sweep(model, chosen, pictures, pictures, labels)
    assert resumed.seconds[: len(killed)].tolist() == [row["seconds"] for row in killed.values()]
    pandas.testing.assert_frame_equal(resumed.drop(columns="seconds"), whole.drop(columns="seconds"), check_exact=True)


def test_memory_does_not_grow_with_the_number_of_formats(monkeypatch):
    (model, pictures, labels), apply, made, alive = small(), post_training.apply, [], []

    def watched(*arguments, **options):
        alive.append(sum(reference() is not None for reference in made))
        network = apply(*arguments, **options)
        made.append(weakref.ref(network))
        return network

    monkeypatch.setattr(post_training, "apply", watched)
    sweeping.sweep(model, quantization.GRID[:9], pictures, pictures, labels)
    assert len(made) >= 9
    assert max(alive[2:]) <= 1


def test_sensitivity_of_layers_and_a_budget(trained, digits):
    images, labels = digits.test.images[:100], digits.test.labels[:100]
    frame = sweeping.sweep(trained, ["INT_8", "INT_3"], digits.train.images[:64], images, labels, per_layer=True)
    names = [name for name, _ in layers.weighted_layers(trained)]
    assert len(frame) == 2 * len(names)
    assert set(frame.layer) == set(names)
    coarse, fine = (frame[frame.format == name].logit_error.to_numpy() for name in ("INT_3", "INT_8"))
    assert (coarse > fine).all()
    budget = 4 * frame.drop_duplicates("layer").params.sum()
    chosen = quantization.allocate(frame, budget)
    assert set(chosen.values()) == {"INT_3", "INT_8"}
    mixed, plain = (
        post_training.ptq(trained, weights, digits.train.images[:64], activations=False)
        for weights in (chosen, "INT_3")
    )
    x = data.to_pixels(images)
    with torch.no_grad():
        wanted = trained(x)
        errors = [(network(x) - wanted).square().mean().item() for network in (mixed, plain)]
    assert errors[0] < errors[1] / 2


def test_a_misspelt_format_is_refused_before_anything_is_computed(monkeypatch):
    model, pictures, labels = small()
    monkeypatch.setattr(calibration, "calibrate", lambda *arguments, **options: pytest.fail("too late"))
    with pytest.raises(ValueError, match="FLOAT_8_E44: exponent bits must be"):
        sweeping.sweep(model, (name for name in ["INT_8", "FLOAT_8_E44"]), pictures, pictures, labels)
    with pytest.raises(ValueError, match="'INT8'"):
        sweeping.sweep(model, ["INT8"], pictures, pictures, labels)


def test_a_sweep_without_images_is_refused():
    model, pictures, labels = small()
    with pytest.raises(ValueError, match="expected images to score, got none"):
        sweeping.sweep(model, ["INT_8"], pictures, pictures[:0], labels[:0])
