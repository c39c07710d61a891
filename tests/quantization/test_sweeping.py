"""The sweep: what its rows say, which of them are computed, where it goes on, what it refuses."""

import weakref

import pandas
import pytest
import torch

from rqlib import data, measures, quantization
from rqlib.core import files, layers, runtime
from rqlib.quantization import calibration, integer, post_training, sweeping
from tests import quantized_networks

SEED = {"ranges": "minmax", "nonnegative": "signed"}


@pytest.fixture(scope="module")
def scored(trained, digits):
    chosen = ["INT_16", "INT_8", "INT_4", "INT_3", "INT_2", "POT_2", "FLOAT_8_E1", "FLOAT_8_E4", "FLOAT_8_E1_LEGACY"]
    frame = sweeping.sweep(trained, chosen, digits.calibration(256), *digits.test, **SEED)
    return frame.set_index("format", drop=False)


def small_sweep(formats, **options):
    """A sweep of a network that is not trained."""
    model, pictures, labels = quantized_networks.small()
    return sweeping.sweep(model, formats, pictures, pictures, labels, **options)


def assert_same_rows(one, other):
    pandas.testing.assert_frame_equal(one.drop(columns="seconds"), other.drop(columns="seconds"), check_exact=True)


def test_fine_formats_keep_the_accuracy_and_coarse_and_wrong_ones_lose_it(scored):
    assert scored.float_accuracy["INT_8"] > 0.9
    assert abs(scored.accuracy_loss["INT_8"]) <= 0.01
    assert abs(scored.accuracy_loss["INT_16"]) <= 0.004  # one image of 360
    assert abs(scored.accuracy_loss["FLOAT_8_E4"]) <= 0.01
    assert scored.accuracy["INT_2"] < 0.3
    assert scored.logit_error[["INT_16", "INT_8", "INT_4", "INT_3"]].is_monotonic_increasing
    assert scored.agreement["INT_8"] > 0.99
    for column in ("logit_error", "relative_error_macs"):
        assert scored[column]["FLOAT_8_E1_LEGACY"] > 5 * scored[column]["FLOAT_8_E1"]


def test_rows_say_what_they_are(scored, trained):
    assert scored.bits.tolist() == [16, 8, 4, 3, 2, 2, 8, 8, 8]
    assert scored.significant_bits["FLOAT_8_E4"] == 4
    assert scored.coded_bits["INT_4"] == 4 * measures.weight_count(trained)
    assert scored.js_macs_normalized["INT_4"] == 1
    assert scored.js_macs["INT_2"] > scored.js_macs["INT_4"] > scored.js_macs["INT_8"] > 0
    assert set(scored.arithmetic) <= {"int8", "float32"}
    assert scored.arithmetic["FLOAT_8_E4"] == "float32"
    assert scored.duplicate_of["FLOAT_8_E1"] == "INT_8"
    assert scored.kind["FLOAT_8_E1"] == "FLOAT"
    assert scored.seconds["FLOAT_8_E1"] == 0, "formats of equal values are computed once"
    assert scored.logit_error["FLOAT_8_E1"] == scored.logit_error["INT_8"]


def test_a_row_is_what_ptq_gives(scored, trained, digits):
    network = post_training.ptq(trained, "FLOAT_8_E4", digits.calibration(256), **SEED)
    expected = scored.accuracy["FLOAT_8_E4"]
    assert measures.accuracy(network, *digits.test) == pytest.approx(expected, abs=2 / len(digits.test.labels))
    lowered = integer.lower(network, arithmetic="float32")
    assert measures.accuracy(lowered, *digits.test) == pytest.approx(expected)


def test_the_numbers_are_the_same_under_every_policy():
    chosen = ["INT_8", "INT_12", "FLOAT_8_E4", "POT_8"]
    expected = small_sweep(chosen)
    with runtime.using("cpu", "bfloat16"):
        assert_same_rows(small_sweep(chosen), expected)


def test_a_sweep_goes_on_where_it_stopped(tmp_path, monkeypatch):
    chosen = ["INT_8", "FLOAT_8_E1", "POT_4", "FLOAT_6_E2"]
    whole = small_sweep(chosen)
    path, calls, lower = tmp_path / "rows.pt", [], integer.lower

    def counted(network, **options):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(options)
        return lower(network, **options)

    monkeypatch.setattr(integer, "lower", counted)
    with pytest.raises(KeyboardInterrupt):
        small_sweep(chosen, checkpoint=path)
    finished = files.load_tensors(path)["rows"]
    assert [*finished] == [("", "INT_8"), ("", "FLOAT_8_E1"), ("", "POT_4")]
    calls.clear()
    resumed = small_sweep(chosen, checkpoint=path)
    assert len(calls) == 1
    assert resumed.seconds[:3].tolist() == [row["images"]["seconds"] for row in finished.values()]
    assert_same_rows(resumed, whole)
    with pytest.raises(ValueError, match="belongs to another sweep: options"):
        small_sweep(chosen, checkpoint=path, granularity="channel")


def test_sets_are_scored_as_each_would_be_alone(trained, digits, monkeypatch):
    sets, formats = {"some": digits.test.take(40), "more": digits.test.take(100)}, ["INT_3", "FLOAT_6_E2"]
    alone = {name: sweeping.sweep(trained, formats, digits.calibration(50), *split) for name, split in sets.items()}
    lowered, lower = [], integer.lower
    monkeypatch.setattr(integer, "lower", lambda *some, **options: lowered.append(1) or lower(*some, **options))
    found = sweeping.sweep_sets(trained, formats, digits.calibration(50), sets)
    assert len(lowered) == 2, "each network is quantized once"
    for name in sets:
        assert_same_rows(found[name], alone[name])
    assert found["some"].accuracy_loss.tolist() != found["more"].accuracy_loss.tolist()
    with pytest.raises(ValueError, match="expected images to score"):
        sweeping.sweep_sets(trained, formats, digits.calibration(50), {})
    sets["small"] = data.Split(sets["some"].images[:, :, :16, :16], sets["some"].labels)
    with pytest.raises(ValueError, match="expected images of one size in all sets, got .*16, 16.*32, 32"):
        sweeping.sweep_sets(trained, formats, digits.calibration(50), sets)


def test_a_set_may_be_named_like_an_option(trained, digits, tmp_path):
    kept = {"checkpoint": tmp_path / "rows.pt"}
    sweeping.sweep_sets(trained, ["INT_4"], digits.calibration(50), {"options": digits.test.take(20)}, **kept)
    with pytest.raises(ValueError, match="belongs to another sweep: sets"):
        sweeping.sweep_sets(trained, ["INT_4"], digits.calibration(50), {"options": digits.test.take(30)}, **kept)


def test_memory_does_not_grow_with_the_number_of_formats_of_the_whole_grid(monkeypatch):
    apply, made, alive = post_training.apply, [], []

    def watched(*arguments, **options):
        alive.append(sum(reference() is not None for reference in made))
        network = apply(*arguments, **options)
        made.append(weakref.ref(network))
        return network

    monkeypatch.setattr(post_training, "apply", watched)
    frame = small_sweep(quantization.GRID, measures=["js", "js_legacy"])
    assert len(made) >= 30
    assert max(alive[2:]) <= 1
    assert frame.format.tolist() == [format.name for format in quantization.GRID]
    assert not frame.drop(columns="duplicate_of").isna().any(axis=None)
    errors = frame.set_index("format").js_legacy_macs
    assert errors["INT_12"] < errors["INT_4"]


def test_images_in_files_are_read_once():
    class Files(list):
        """Images that count how often they are read."""

        reads = 0

        def __getitem__(self, rows):
            self.reads += 1
            return torch.stack(list(self))[rows]

    model, pictures, labels = quantized_networks.small()
    read = Files(pictures)
    frame = sweeping.sweep(model, ["INT_8", "INT_4"], pictures, read, labels)
    assert read.reads == 1
    assert_same_rows(frame, small_sweep(["INT_8", "INT_4"]))


def test_layer_by_layer(trained, digits):
    frame = sweeping.sweep(trained, ["INT_8", "INT_3"], digits.calibration(64), *digits.test.take(100), per_layer=True)
    weights = {name: layer.weight.numel() for name, layer in layers.weighted_layers(trained)}
    assert frame.layer.tolist() == 2 * list(weights)
    assert frame.params.tolist() == 2 * list(weights.values())
    coarse, fine = (frame[frame.format == name].logit_error.to_numpy() for name in ("INT_3", "INT_8"))
    assert (coarse > fine).all()


@pytest.mark.parametrize(
    ("format", "count", "words"),
    [
        ("FLOAT_8_E44", 1, "FLOAT_8_E44: exponent bits must be"),
        ("INT8", 1, "unknown format 'INT8'"),
        ("INT_4", 0, "expected images to score, got none"),
    ],
)
def test_mistakes_are_refused_before_anything_is_computed(monkeypatch, format, count, words):
    monkeypatch.setattr(calibration, "calibrate", lambda *arguments, **options: pytest.fail("too late"))
    model, pictures, labels = quantized_networks.small()
    with pytest.raises(ValueError, match=words):
        sweeping.sweep(model, (name for name in ["INT_8", format]), pictures, pictures[:count], labels[:count])
