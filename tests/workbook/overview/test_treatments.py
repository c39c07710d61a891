"""The tables of every notebook become one row per treatment; what is missing is left out."""

import math

import pandas
import pytest

from rqlib import measures
from rqlib.workbook import summary
from rqlib.workbook.overview import measurements, networks, treatments
from rqlib.workbook.overview.kinds import CHANNELS, DEFENDED, FLOAT, FORMAT, JOINT, MIX, PRUNED, UNSEEN
from tests.workbook.overview import made_up


def sections() -> list[treatments.Section]:
    return treatments.sections(measurements.table(networks.sources(summary.notebooks())))


def rows(section: treatments.Section) -> pandas.DataFrame:
    return section.rows.set_index("treatment")


def test_every_treatment_of_a_network_is_one_row(outputs):
    made_up.everything(outputs)
    section, adversarial = sections()
    assert section.title == "SmallCNN on digits"
    assert adversarial.title == "SmallCNN on digits, trained: adversarial at 16/255"
    assert rows(adversarial).kind.to_dict() == {"float": FLOAT, "INT_8": FORMAT, "natural": DEFENDED}
    assert section.balls == ["16/255", "8/255"]
    assert section.proved == "16/255"
    table = rows(section)
    assert table.kind.to_dict() == {
        "float": FLOAT,
        "INT_8": FORMAT,
        "INT_4": FORMAT,
        "INT_4, with bias correction": FORMAT,
        "INT_2": FORMAT,
        "mix of formats, 4 bits per weight": MIX,
        "INT_8 without data": UNSEEN,
        "hydra, 10% of the weights (adversarial)": PRUNED,
        "hydra INT_8, 10% of the weights (adversarial)": PRUNED,
        "half of the channels removed": CHANNELS,
        "ATMC-8, 16 times smaller": JOINT,
        "adversarial at 16/255": DEFENDED,
    }


@pytest.mark.parametrize(
    ("certified", "expected"),
    [
        ({"16/255": 0.0, "4/255": 0.5, "2/255": 0.9}, ("4/255", "16/255")),
        ({"16/255": 0.1, "4/255": 0.5}, ("16/255", "")),
        ({"16/255": 0.0, "L2 0.25": 0.9, "1/255": 0.2}, ("1/255", "16/255")),
        ({"16/255": 0.0, "4/255": 0.0}, ("16/255", "")),
        ({"8/255": 0.0, "4/255": 0.5}, ("4/255", "8/255")),
        ({}, ("", "")),
    ],
)
def test_proofs_are_shown_at_the_radius_of_the_attacks_or_at_the_largest_where_there_is_one(certified, expected):
    network = networks.Network("SmallCNN", 1.0, "digits", "natural")
    shared = {"network": network, "kind": FLOAT, "treatment": "float", "seed": (0, None), "started": 0, "report": ""}
    shared |= {"images": 100, "how": "IBP", "low": math.nan, "high": math.nan}
    found = [shared | {"metric": "certified", "within": ball, "value": share} for ball, share in certified.items()]
    found += [shared | {"metric": "robust", "within": "16/255", "value": 0.5}]
    (section,) = treatments.sections(pandas.DataFrame(found))
    assert (section.proved, section.unproved) == expected


def test_the_figures_of_each_notebook_arrive(outputs):
    made_up.everything(outputs)
    table = rows(sections()[0])
    whole, hydra = table.loc["float"], table.loc["hydra, 10% of the weights (adversarial)"]
    assert (whole.clean, whole.clean_images, whole.macs, whole.milliseconds) == (0.98, 200, 5000, 9.0)
    assert (whole.robust, whole.robust_low, whole.robust_how) == (0.1, pytest.approx(0.06), "all of these")
    assert (whole["robust 8/255"], whole["robust 8/255_images"]) == (0.3, 50)
    assert (hydra.bits, hydra.robust, hydra.certified, hydra.certified_how) == (4800, 0.6, 0.5, "CROWN")
    assert table.bits["hydra INT_8, 10% of the weights (adversarial)"] == 3200 / 4 + 500 + 320
    assert table.bits["INT_8"] == 8 * 1000 + 32 * 10
    assert table.bits["mix of formats, 4 bits per weight"] == 4 * 1000 + 32 * 10
    assert table.bits["ATMC-8, 16 times smaller"] == 8 * 260
    assert table.predicted["INT_4"] == pytest.approx(0.98 * 0.95)
    assert table.predicted_low["INT_8"] == pytest.approx(0.98 * 0.9)
    assert table.predicted["INT_8 without data"] == pytest.approx(0.98 * 0.99)
    assert table.robust["INT_8"] == 0.1
    assert (hydra.float_clean, hydra.float_clean_images, hydra.float_robust) == (0.98, 200, 0.1)
    assert table.float_clean.drop("float").drop("adversarial at 16/255").eq(0.98).all()
    assert table.macs["half of the channels removed"] == 1500
    assert (table.robust["adversarial at 16/255"], table.certified["adversarial at 16/255"]) == (0.7, 0.2)


def test_a_forecast_stands_beside_what_was_measured(outputs):
    made_up.train(outputs)
    made_up.quantize(outputs)
    values = {"network": f"{made_up.NATURAL}/checkpoint.pt", "dataset": "digits"}
    forecast = [{"format": "INT_4", "predicted": 0.1, "lower": 0.05, "upper": 0.2}]
    setting = {"granularity": "tensor", "ranges": "mse", "nonnegative": "unsigned", "bias": "float"}
    made_up.write(outputs, "03_fit/SmallCNN", values, [setting | {"predictor": "js"}], forecast=forecast)
    (section,) = sections()
    row = rows(section).loc["INT_4"]
    assert (row.clean, row.predicted, row.predicted_low) == (0.95, pytest.approx(0.98 * 0.9), pytest.approx(0.98 * 0.8))


def test_of_one_network_the_interval_is_over_images_of_several_over_seeds(outputs):
    made_up.train(outputs, accuracy=0.98)
    (one,) = sections()
    assert tuple(rows(one).loc["float", ["clean_low", "clean_high"]]) == measures.wilson(0.98, 200)
    made_up.train(outputs, "01_train/second", accuracy=0.96, seed=1)
    path = outputs / "01_train/second/rows.parquet"
    pandas.read_parquet(path).assign(seed=1).to_parquet(path)
    (both,) = sections()
    found = rows(both).loc["float"]
    assert (found.clean, found.clean_seeds) == (pytest.approx(0.97), 2)
    assert found.clean_low == pytest.approx(0.97 - 12.706 * 0.01, abs=1e-3)
    assert found.clean_high == 1.0


def test_a_number_of_images_that_does_not_fit_gives_no_interval(outputs):
    made_up.train(outputs, accuracy=0.9833)
    assert "clean_low" not in sections()[0].rows
    assert math.isnan(measures.wilson(0.5, math.nan)[0])


@pytest.mark.parametrize(
    "missing", ["rows", "quantized", "proved", "sizes", "certified", "by_noise", "filters", "forecast"]
)
def test_missing_tables_are_left_out(outputs, missing):
    made_up.everything(outputs)
    for path in outputs.glob(f"0[456]*/*/{missing}.parquet"):
        path.unlink()
    section = sections()[0]
    assert {"float", "INT_8"} <= set(section.rows.treatment)


def test_a_network_from_elsewhere_is_known_by_its_rows(outputs):
    made_up.quantize(outputs, "no run of ours")
    (section,) = sections()
    assert section.title == "SmallCNN on digits"
    assert section.float_row["clean"] == 0.98
    assert rows(section).bits["INT_8"] == 8000


def test_networks_of_one_title_are_told_apart_by_their_recipe(outputs):
    for epochs in (12, 40):
        made_up.train(outputs, f"01_train/{epochs}", epochs=epochs)
        made_up.quantize(outputs, f"01_train/{epochs}", name=str(epochs))
    assert [one.title for one in sections()] == [f"SmallCNN on digits (quick, {epochs} epochs)" for epochs in (12, 40)]


def test_the_study_of_defenses_gives_networks_of_other_trainings(outputs):
    made_up.train(outputs)
    made_up.attack(outputs)
    path = outputs / "05_robust/SmallCNN/study.parquet"
    study = [{"variant": "Q+A", "seed": seed, "trained_255": 16.0, "epsilon_255": 16.0, "clean_accuracy": 0.9,
              "robust_accuracy": robust} for seed, robust in ((0, 0.5), (1, 0.6))]  # fmt: skip
    pandas.DataFrame(study).to_parquet(path)
    found = rows(sections()[0]).loc["Q+A at 16/255"]
    assert (found.kind, found.robust, found.robust_seeds) == (DEFENDED, pytest.approx(0.55), 2)


def test_a_damaged_table_is_named(outputs):
    made_up.train(outputs)
    (outputs / made_up.NATURAL / "rows.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(ValueError, match=r"rows\.parquet: not a whole table .*; remove it"):
        sections()


def test_a_run_whose_tables_are_of_another_kind_is_left_out_by_name(outputs):
    made_up.train(outputs)
    made_up.write(outputs, "02_quantize/old", {"dataset": "digits"}, [{"images": "digits", "model": "SmallCNN",
                  "width": 1.0, "float_accuracy": 0.98, "format": "INT_8", "accuracy": 0.9}])  # fmt: skip
    with pytest.warns(UserWarning, match="run left out: .*02_quantize/old: .* got none with 'coded_bits'"):
        assert len(sections()) == 1
