import inspect
import re

import pandas
import pytest

from rqlib import quantization
from rqlib.prediction import features, relative_accuracy, settings
from tests import published

SEED = {"granularity": "tensor", "ranges": "minmax", "nonnegative": "signed", "bias": "float"}
TODAY = SEED | {"ranges": "mse", "nonnegative": "unsigned"}


def test_todays_setting_is_that_of_ptq():
    usual = inspect.signature(quantization.ptq).parameters
    assert {name: usual[name].default for name in settings.TODAY} == settings.TODAY


def both(old: int = 2, today: int = 3) -> pandas.DataFrame:
    """Networks in the seed's setting, whose rows do not say so, and in today's."""
    new = published.made_up(today).assign(**TODAY)
    new["run"] = new.run + "b"
    return pandas.concat([published.made_up(old), new], ignore_index=True)


def test_the_setting_is_that_of_most_networks_and_is_printed(capsys):
    assert settings.setting(both()) == TODAY
    said = capsys.readouterr().out
    assert said == (
        "measured with granularity tensor, ranges mse, nonnegative unsigned, bias float: 3 of 3 measured networks\n"
    )
    assert settings.setting(both(old=4)) == SEED
    assert settings.setting(both(old=3)) == TODAY, "of equals the one that is usual today"
    assert settings.setting(both(), ranges="minmax", granularity="") == SEED
    assert settings.setting(both(), like=published.robust().assign(ranges="minmax", nonnegative="signed")) == SEED


def test_rows_of_one_setting_are_kept_together_with_float_networks():
    rows = pandas.concat([both(), published.made_up(1)[:1].assign(format="FP32")], ignore_index=True)
    found = settings.measured_with(rows, SEED)
    assert len(found) == 2 * 12 + 1
    assert (found[list(SEED)] == list(SEED.values())).all(axis=None)
    assert settings.measured_with(found, SEED).equals(found)
    assert len(features.table(settings.measured_with(rows, TODAY))) == 3 * 12


def test_networks_are_counted_and_not_their_runs():
    often = [published.made_up(1).assign(run=run) for run in ("a", "b", "c")]
    assert settings.setting(pandas.concat([*often, published.made_up(2).assign(**TODAY)], ignore_index=True)) == TODAY


def test_of_a_float_network_scored_beside_two_settings_one_row_stays():
    one = published.wide().assign(**SEED)
    rows = pandas.concat([one, one.assign(**TODAY)], ignore_index=True)
    found = settings.measured_with(rows, TODAY)
    assert found.format.tolist() == ["FP32", "INT_4", "INT_8"]
    assert len(relative_accuracy.relative(found))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda rows: settings.setting(rows, ranges="percentile"),
            "expected rows measured with ranges percentile, got granularity tensor, ranges mse, nonnegative unsigned",
        ),
        (
            lambda rows: settings.measured_with(rows, TODAY | {"granularity": "channel"}),
            "expected rows measured with granularity channel, ranges mse, nonnegative unsigned, bias float, got "
            "granularity tensor, ranges minmax",
        ),
    ],
)
def test_a_setting_that_was_not_measured_is_refused(call, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        call(both())
