import inspect
import re

import pandas
import pytest

from rqlib import quantization
from rqlib.prediction import features, settings
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
        "measured with granularity tensor, ranges mse, nonnegative unsigned, bias float: 3 of 5 measured networks\n"
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
