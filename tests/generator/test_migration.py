import math

import pandas
import pytest

from rqlib import data, generator, prediction, quantization
from rqlib.generator import migration
from tests import generated, published

FORMATS = ["INT_3", "INT_8", "FLOAT_8_E4"]


def sets() -> dict[str, data.Split]:
    return {
        name: generator.sample(generated.trained(), 60, seed=seed) for seed, name in enumerate(("adjusted", "trained"))
    }


def losses(formats=FORMATS, real=None, pseudo=None, **options) -> pandas.DataFrame:
    pseudo = pseudo or sets()
    return migration.losses(
        generated.teacher(), formats, sets()["trained"].images, pseudo, real, measures=["js"], **options
    )


def test_rows_are_those_of_sweeps(tmp_path):
    test, made = data.load("digits").test.take(100), sets()["trained"]
    rows = losses(real=test, folder=tmp_path)
    real = quantization.sweep(generated.teacher(), FORMATS, made.images, *test, measures=["js"])
    on_pseudo = quantization.sweep(generated.teacher(), FORMATS, made.images, *made, measures=["js"])
    assert rows.accuracy_loss.tolist() == real.accuracy_loss.tolist()
    assert rows.pseudo_accuracy_loss.tolist() == on_pseudo.accuracy_loss.tolist()
    assert rows.js_macs.tolist() == real.js_macs.tolist()
    assert list(rows)[-2:] == ["pseudo_accuracy_loss", "pseudo_accuracy_loss_adjusted"], "in a fixed order"
    assert {path.name for path in tmp_path.iterdir()} == {"sweeps.pt"}


def test_no_formats_are_the_whole_grid(monkeypatch):
    asked = []
    rows = pandas.DataFrame({"accuracy_loss": [0.0], **dict.fromkeys(migration.TRUTH, [0.0])})

    def sweep_sets(model, formats, calibration_images, sets, **options):
        asked.append(formats)
        return dict.fromkeys(sets, rows)

    monkeypatch.setattr(quantization, "sweep_sets", sweep_sets)
    losses([])
    assert asked[0] == list(quantization.GRID)


def test_without_images_there_is_no_truth():
    rows = losses()
    assert not {"accuracy", "accuracy_loss", "float_accuracy"} & set(rows)
    assert {"pseudo_accuracy_loss", "pseudo_accuracy_loss_adjusted", "js_macs"} <= set(rows)
    found = migration.migrate(rows.assign(model="new"))
    assert "accuracy_loss" not in found
    assert found.set_index("format").predicted.to_dict() == rows.set_index("format").pseudo_accuracy_loss.to_dict()


def test_calibration_without_data_is_as_good():
    digits = data.load("digits")
    made = generator.sample(generated.trained(), 300)
    images = {"real": digits.calibration(300), "generated": made.images}
    found = migration.calibrations(generated.teacher(), images, digits.test)
    assert list(found) == ["format", "real", "generated", "float"]
    assert found.format.tolist() == ["INT_8", "FLOAT_8_E4"]
    assert (found.real - found.generated).abs().max() < 0.03
    assert (found.real - found.float).abs().max() < 0.03
    options = {"ranges": "minmax", "nonnegative": "signed"}
    coarse = migration.calibrations(generated.teacher(), images, digits.test, formats=["INT_4"], **options)
    expected = quantization.sweep(generated.teacher(), ["INT_4"], made.images, *digits.test, measures=[], **options)
    assert coarse.generated.tolist() == expected.accuracy.tolist()


def known() -> pandas.DataFrame:
    frame = published.made_up(4, formats=8)
    return prediction.table(frame.assign(pseudo_accuracy_loss=0.5 * frame.js_macs / (frame.js_macs + 1)))


def test_networks_measured_before_give_an_interval_and_never_see_the_new_one(monkeypatch):
    seen, leave_out = [], prediction.leave_out
    monkeypatch.setattr(
        prediction, "leave_out", lambda others, **more: seen.append(others) or leave_out(others, **more)
    )
    new = known()[lambda frame: frame.model == "net3"]
    found = migration.migrate(new, known())
    assert set(seen[0].model) == {"net0", "net1", "net2"}
    assert found.lower.notna().all()
    assert migration.score(found)["mae"] < 0.12


def test_too_few_networks_measured_before_leave_the_loss_on_generated_images(capsys):
    new = known()[lambda frame: frame.model == "net3"].assign(pseudo_accuracy_loss_boundary=0.25)
    few = migration.migrate(new, known()[lambda frame: frame.model == "net0"])
    assert set(few.predicted) == {0.25}, "images between classes come first"
    assert few.lower.isna().all()
    assert "1 other networks, fewer than 3" in capsys.readouterr().out


def test_networks_measured_before_are_read_from_a_file(tmp_path):
    published.made_up(2).to_csv(tmp_path / "known.csv", index=False)
    assert migration.measured_before("") is None
    assert migration.measured_before(str(tmp_path / "known.csv")).model.nunique() == 2


def test_recorded_rows_begin_with_the_float_network_and_hold_every_format():
    lost = pandas.DataFrame({"format": ["INT_8", "INT_4"], "accuracy": [0.9, 0.5]})
    attacked = pandas.DataFrame({"format": ["FP32", "INT_4", "POT_4"], "test_clean": [0.95, 0.5, 0.6]})
    rows = migration.rows(lost.assign(dataset="digits", model="net", width=1.0, seed=None), attacked)
    assert list(rows) == ["format", "test_clean", "accuracy", "dataset", "model", "width", "seed"]
    assert rows.format.tolist() == ["FP32", "INT_8", "INT_4", "POT_4"]
    assert rows.model.tolist() == ["net"] * 4
    assert rows.seed.isna().all(), "a network from elsewhere has no seed"
    assert rows.accuracy.tolist() == pytest.approx([math.nan, 0.9, 0.5, math.nan], nan_ok=True)
    assert rows.test_clean.tolist() == pytest.approx([0.95, math.nan, 0.5, 0.6], nan_ok=True)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: losses(pseudo={"targeted": None}), "generators refined, boundary, trained, adjusted, got targeted"),
        (lambda: migration.migrate(published.made_up(1)), "expected a loss on generated images"),
    ],
)
def test_errors(call, words):
    with pytest.raises(ValueError, match=words):
        call()
