import pandas
import pytest

from rqlib import data, generator, prediction, quantization
from rqlib.core import runtime
from rqlib.generator import migration
from tests import generated, published

FORMATS = ["INT_3", "INT_4", "INT_8", "FLOAT_8_E4"]


@pytest.fixture(autouse=True)
def float32():
    with runtime.using("cpu", "float32"):
        yield


def losses(real=None, **options):
    made = generator.sample(generated.trained(), 200)
    pseudo = {"trained": made, "adjusted": generator.sample(generated.trained(), 100, seed=1)}
    return migration.losses(generated.teacher(), FORMATS, made.images, pseudo, real, **options)


def test_rows_are_those_of_sweeps(tmp_path):
    test = data.load("digits").test
    rows = losses(test, folder=tmp_path)
    made = generator.sample(generated.trained(), 200)
    real = quantization.sweep(generated.teacher(), FORMATS, made.images, *test)
    on_pseudo = quantization.sweep(generated.teacher(), FORMATS, made.images, *made)
    assert rows.accuracy_loss.tolist() == real.accuracy_loss.tolist()
    assert rows.pseudo_accuracy_loss.tolist() == on_pseudo.accuracy_loss.tolist()
    assert rows.js_macs.tolist() == real.js_macs.tolist()
    assert {path.name for path in tmp_path.iterdir()} == {"trained.pt", "adjusted.pt", "real.pt"}


def test_without_images_there_is_no_truth():
    rows = losses()
    assert not {"accuracy", "accuracy_loss", "float_accuracy"} & set(rows)
    assert {"pseudo_accuracy_loss", "pseudo_accuracy_loss_adjusted", "js_macs"} <= set(rows)
    found = migration.forecast(rows.assign(model="new"))
    assert "accuracy_loss" not in found
    assert found.set_index("format").predicted.to_dict() == rows.set_index("format").pseudo_accuracy_loss.to_dict()


def test_calibration_without_data_is_as_good():
    digits = data.load("digits")
    made = generator.sample(generated.trained(), 500)
    found = [quantization.sweep(generated.teacher(), ["INT_8", "FLOAT_8_E4"], images, *digits.test, measures=[])
             for images in (digits.train.images, made.images)]  # fmt: skip
    assert (found[0].accuracy - found[1].accuracy).abs().max() < 0.03


def known():
    frame = published.made_up(4)
    return prediction.table(frame.assign(pseudo_accuracy_loss=0.5 * frame.js_macs / (frame.js_macs + 1)))


def test_rows_without_generated_images_forecast_nothing():
    rows = pandas.DataFrame({"model": ["net"], "format": ["INT_8"], "accuracy": [0.8], "float_accuracy": [0.9]})
    with pytest.raises(ValueError, match="expected a loss on generated images"):
        migration.forecast(rows)


def test_networks_measured_before_give_an_interval_and_never_see_the_new_one(capsys):
    new = known()[lambda frame: frame.model == "net3"]
    found = migration.forecast(new, known())
    assert found.lower.notna().all()
    assert (found.predicted - found.accuracy_loss).abs().mean() < 0.1
    others = known()[lambda frame: frame.model != "net3"]
    assert migration.forecast(new, others).equals(found)
    few = migration.forecast(new.assign(pseudo_accuracy_loss_boundary=0.25), others[others.model == "net0"])
    assert set(few.predicted) == {0.25}, "images between classes come first"
    assert few.lower.isna().all()
    assert "1 other networks, fewer than 3" in capsys.readouterr().out
