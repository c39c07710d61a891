import pandas
import pytest

from rqlib import prediction
from rqlib.prediction import forecasting, ranking
from rqlib.prediction.published import PSEUDO
from tests import published
from tests.prediction.test_ranking import RIVALS
from tests.prediction.test_ranking import trial as tried


def test_a_network_of_the_table_is_left_out_of_choice_and_fit():
    losses, trial = tried()
    found = prediction.forecast(trial, losses, "net3")
    assert found.predictors == trial.best(losses.columns, without="net3")
    known, new = losses[losses.model != "net3"], losses[losses.model == "net3"]
    assert found.level == 0.8, "four networks have shown their errors"
    expected = forecasting.predict(new, forecasting.fit(known, found.predictors), level=found.level)
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
    with pytest.raises(ValueError, match="unknown model 'net9'"):
        prediction.forecast(trial, losses, "net9")


def seeds() -> pandas.DataFrame:
    """Four models, the first of them with two seeds."""
    second = published.made_up(1).assign(seed=1, run="02/net0b")
    return prediction.table(pandas.concat([published.made_up(4), second], ignore_index=True))


def test_two_networks_of_one_model_are_two_and_both_are_left_out():
    losses = seeds()
    trial = ranking.leave_out(losses, RIVALS)
    found = prediction.forecast(trial, losses, "net0, seed 1")
    assert found.table.format.is_unique
    own = losses[losses.title == "net0, seed 1"]
    fit = forecasting.fit(losses[losses.model != "net0"], found.predictors)
    assert found.table.equals(forecasting.predict(own, fit, level=found.level))
    assert prediction.forecast(trial, losses, "net1").table.format.is_unique
    with pytest.raises(ValueError, match="expected one network, 'net0' are 2: net0, seed 0; net0, seed 1; name one"):
        prediction.forecast(trial, losses, "net0")


def test_a_familiar_network_is_said_to_be_so_and_of_another_every_strange_feature_is_named():
    losses = tried()[0].assign(depthwise_share=0.0, weight_count=1000.0)
    trial = ranking.leave_out(losses, RIVALS)
    new = losses[losses.model == "net3"].assign(model="new", title="new").drop(columns="accuracy_loss")
    inside = prediction.forecast(trial, losses, new)
    assert prediction.familiarity(inside) == "all 12 formats lie within what was measured"
    assert inside.unlike.empty
    outside = prediction.forecast(trial, losses, new.assign(depthwise_share=0.5, weight_count=1e6))
    said = prediction.familiarity(outside)
    assert said.startswith("unlike the measured networks: 12 of 12 formats lie outside what was measured, in ")
    assert "weight_count 1,000,000 (measured: 1,000 to 1,000)" in said
    assert "depthwise_share 0.5 (measured: 0 to 0)" in said
    assert "times up to 6.95, because the network lies up to 5.95 ranges outside" in said
    width = (outside.table.upper - outside.table.lower) - (inside.table.upper - inside.table.lower)
    assert (width > 0).all()
    assert outside.table.predicted.equals(inside.table.predicted)


def test_losses_on_generated_images_are_read_where_both_have_them(capsys):
    losses = tried()[0]
    lost = losses.assign(**{PSEUDO: losses.accuracy_loss.round(2)})
    trial = ranking.leave_out(lost, [*RIVALS, forecasting.Predictor((PSEUDO,), "identity", "itself")])
    new = lost[lost.model == "net3"].assign(model="new", title="new")
    assert [one.name for one in prediction.forecast(trial, lost, new).predictors] == ["itself"]
    blind = prediction.forecast(trial, lost, new.drop(columns=PSEUDO))
    assert {one.name for one in blind.predictors} == {one.name for one in RIVALS}
    assert "not used" not in capsys.readouterr().out
    unread = prediction.forecast(ranking.leave_out(losses, RIVALS), losses, new)
    assert unread.table.predicted.equals(blind.table.predicted)
    assert "known of this network, but not of the measured ones: not used" in capsys.readouterr().out


def test_how_good_such_forecasts_are_stands_in_one_row_per_network():
    losses, trial = tried()
    judged = prediction.forecast(trial, losses, "net3").judged.table()
    rows = prediction.judged_by_network(judged)
    assert rows.index.tolist() == ["net0", "net1", "net2", "net3", "net4"]
    own = judged[judged.title == "net2"]
    assert rows.mae["net2"] == pytest.approx(own.residual.abs().mean())
    assert rows.coverage["net2"] == prediction.coverage(own)
    assert not rows.isna().all().any()


def test_of_two_trainings_of_one_model_only_its_own_rows_are_left_out(capsys):
    trained = [published.made_up(1).assign(objective=one, run=one) for one in ("natural", "adversarial")]
    others = published.made_up(4)
    others = others[others.model != "net0"].assign(objective="natural")
    losses = prediction.table(pandas.concat([*trained, others], ignore_index=True))
    trial = ranking.leave_out(losses, RIVALS, group="network_name")
    new = prediction.table(trained[1].drop(columns=["run", "accuracy"]))
    found = prediction.forecast(trial, losses, new, group="network_name")
    assert found.table.format.is_unique
    own = losses.network_name == "net0, adversarial"
    fit = forecasting.fit(losses[~own], found.predictors, group="network_name")
    assert found.table.predicted.equals(forecasting.predict(new, fit).predicted)
    unknown = new.drop(columns="objective").assign(network_name="net0", title="net0")
    blind = prediction.forecast(trial, losses, unknown, group="network_name")
    said = "net0, natural; net0, adversarial: perhaps this network (objective not known); its rows are not used"
    assert said in capsys.readouterr().out
    fit = forecasting.fit(losses[losses.model != "net0"], blind.predictors, group="network_name")
    assert blind.table.predicted.equals(forecasting.predict(unknown, fit).predicted)


def test_a_network_of_the_same_name_on_other_images_is_another_network(capsys):
    losses, trial = tried()
    new = losses[losses.model == "net3"].assign(dataset="my photos")
    found = prediction.forecast(trial, losses, new)
    assert "not used" not in capsys.readouterr().out
    fit = forecasting.fit(losses, found.predictors)
    assert found.table.predicted.equals(forecasting.predict(new, fit).predicted)


def test_a_group_that_divides_networks_is_refused():
    losses, _ = tried()
    trial = ranking.leave_out(losses, RIVALS, group="kind")
    with pytest.raises(ValueError, match="expected a column whose values hold whole networks, .* got 'kind', which"):
        prediction.forecast(trial, losses, "net3", group="kind")


def test_intervals_promise_what_the_networks_that_were_read_can(capsys):
    losses = tried()[0]
    few = losses.assign(**{PSEUDO: losses.accuracy_loss.where(losses.model.isin(["net0", "net1", "net2"]))})
    predictors = [*RIVALS, forecasting.Predictor((PSEUDO,), "isotonic", "itself")]
    trial = ranking.leave_out(few, predictors)
    new = losses[losses.model == "net4"].assign(model="new", **{PSEUDO: losses.accuracy_loss})
    assert prediction.forecast(trial, few, new).level == pytest.approx(2 / 3), "one of three plays the new one"
    assert "2 networks: intervals can promise at most 67% and are made for that, not 90%" in capsys.readouterr().out


def test_a_measured_network_gets_losses_on_generated_images_later():
    """They are known of its own table only, so that no trial has left it out."""
    losses = tried()[0]
    lost = losses.assign(**{PSEUDO: losses.accuracy_loss.where(losses.model != "net3")})
    trial = ranking.leave_out(lost, [*RIVALS, forecasting.Predictor((PSEUDO,), "identity", "itself")])
    new = losses[losses.model == "net3"].assign(**{PSEUDO: losses.accuracy_loss})
    assert [one.name for one in prediction.forecast(trial, lost, new).predictors] == ["itself"]


def test_measured_networks_are_judged_with_the_intervals_of_a_new_one():
    losses = tried()[0].assign(logit_error=1e-6)
    trial = ranking.leave_out(losses, RIVALS)
    found = prediction.forecast(trial, losses, "net3")
    judged = found.judged.table(found.level)
    own = judged[judged.model == "net3"].set_index("format")
    expected = found.table.set_index("format").loc[own.index]
    assert (expected.predicted == 0).any(), "formats in which no logit moved"
    for name in ("predicted", "lower", "upper"):
        assert own[name].tolist() == pytest.approx(expected[name].tolist()), name
