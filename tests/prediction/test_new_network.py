import pytest

from rqlib import prediction
from rqlib.prediction import forecasting
from tests.prediction.test_ranking import trial as tried


def test_a_network_of_the_table_is_left_out_of_choice_and_fit():
    losses, trial = tried()
    found = prediction.forecast(trial, losses, "net3")
    assert found.predictors == trial.best(losses.columns, without="net3")
    known, new = losses[losses.model != "net3"], losses[losses.model == "net3"]
    expected = forecasting.predict(new, forecasting.fit(known, found.predictors))
    assert found.table.equals(expected)
    changed = losses.assign(accuracy_loss=losses.accuracy_loss.where(losses.model != "net3", 0.5))
    again = prediction.forecast(trial, changed, "net3")
    assert again.table.drop(columns="accuracy_loss").equals(found.table.drop(columns="accuracy_loss"))


def test_another_network_is_predicted_by_what_is_known_of_it():
    losses, trial = tried()
    new = losses[losses.model == "net3"].assign(model="new", js_macs_normalized=None)
    found = prediction.forecast(trial, losses, new.drop(columns="accuracy_loss"), level=0.5)
    assert {one.name for one in found.predictors} == {"macs", "params_normalized"}
    assert sorted(found.table.format) == sorted(new.format)
    assert "accuracy_loss" not in found.table


def test_an_unknown_network_is_named():
    losses, trial = tried()
    with pytest.raises(ValueError, match="unknown model 'net9' .*; known: net0, net1, net2, net3, net4"):
        prediction.forecast(trial, losses, "net9")
