import functools

import pytest

from rqlib.prediction import fits, forecasting, ranking
from rqlib.prediction.forecasting import Predictor
from rqlib.prediction.published import PSEUDO
from rqlib.prediction.ranking import BASELINES, CHOSEN
from tests import published

RIVALS = tuple(
    Predictor((f"js_{what}",), "isotonic", f"{what}") for what in ("macs", "macs_normalized", "params_normalized")
)


@functools.cache
def trial():
    """(table, trial) of five networks."""
    table = published.losses(5)
    return table, ranking.leave_out(table, [*BASELINES, *RIVALS])


def test_board_is_sorted_by_what_is_left_out_and_its_scores_are_right():
    table, found = trial()
    board = ranking.leaderboard(found)
    assert board.held_out_r2.is_monotonic_decreasing, "as all have the same rows"
    assert set(board.predictor) == {CHOSEN, *(one.name for one in (*BASELINES, *RIVALS))}
    line = board.set_index("predictor").loc["macs_normalized"]
    direct, by_kind = (
        fits.cross(table, ["js_macs_normalized"], "accuracy_loss", group, "isotonic").table(0.8)
        for group in ("model", "kind")
    )
    score = fits.scores(direct.accuracy_loss, direct.predicted)
    assert (line.held_out_r2, line.held_out_mae) == pytest.approx((score["r2"], score["mae"]))
    assert line.interval_level == 0.8, "of five networks four show their errors"
    assert line.coverage == direct.accuracy_loss.between(direct.lower, direct.upper).mean()
    assert line.width == pytest.approx((direct.upper - direct.lower).mean())
    in_sample = fits.fit(table[["js_macs_normalized"]], table.accuracy_loss, "isotonic")
    assert line.in_sample_r2 == pytest.approx(in_sample.r2)
    assert line.r2_lower <= line.held_out_r2 <= line.r2_upper
    assert (line.rows, line.groups) == (60, 5)
    assert line.kind_out_r2 == pytest.approx(fits.scores(by_kind.accuracy_loss, by_kind.predicted)["r2"])


def test_format_name_only_is_the_mean_of_the_other_networks():
    table, (_, held_out, _) = trial()
    groups = table.groupby("format").accuracy_loss
    others = (groups.transform("sum") - table.accuracy_loss) / (groups.transform("size") - 1)
    assert held_out[BASELINES[1]].own().tolist() == pytest.approx(others.tolist())


def test_every_predictor_stands_beside_the_name_on_its_own_rows():
    table, _ = trial()
    some = table.assign(js_params_normalized=table.js_params_normalized.where(table.model != "net4"))
    board = ranking.leaderboard(ranking.leave_out(some, [*BASELINES, *RIVALS])).set_index("predictor")
    four = table[table.model != "net4"]
    by_name = fits.cross(four, ("format",), "accuracy_loss", "model", "lookup")
    name_only = fits.scores(by_name.frame.accuracy_loss, by_name.own())["r2"]
    line = board.loc["params_normalized"]
    assert (line.groups, line.above_name) == (4, pytest.approx(line.held_out_r2 - name_only))
    assert board.above_name["format name only"] == 0
    assert board.above_name["macs"] == pytest.approx(board.held_out_r2["macs"] - board.held_out_r2["format name only"])
    assert board.above_name.is_monotonic_decreasing


def test_two_networks_leave_nothing_to_choose_by_and_the_mean_of_all_is_taken():
    table = published.losses(2)
    tried = ranking.leave_out(table, RIVALS)
    assert tried.chosen is None
    assert CHOSEN not in set(ranking.leaderboard(tried).predictor)
    assert tried.best(table.columns, without="net0") == RIVALS
    expected = sum(tried.held_out[one].own() for one in RIVALS) / len(RIVALS)
    assert tried.judged(table.columns).own().tolist() == pytest.approx(expected.tolist())


def test_predictors_known_of_different_networks_are_all_on_the_board():
    table, _ = trial()
    first = table.model.isin(["net0", "net1"])
    apart = table.assign(js_macs=table.js_macs.where(first), js_params_normalized=table.js_macs.where(~first))
    found = ranking.leave_out(apart, [RIVALS[0], RIVALS[2]])
    assert sorted(ranking.leaderboard(found).groups) == [2, 3]
    assert found.chosen is None


def test_features_that_do_not_vary_predict_nothing(capsys):
    table, _ = trial()
    board = ranking.leaderboard(ranking.leave_out(table.assign(js_macs=1.0), RIVALS))
    assert "macs" not in set(board.predictor)
    assert "the same in all rows, so no predictors: js_macs" in capsys.readouterr().out


def test_of_losses_that_are_all_equal_no_share_is_explained():
    board = ranking.leaderboard(ranking.leave_out(trial()[0].assign(accuracy_loss=0.0), RIVALS))
    assert board.held_out_r2.isna().all()
    assert (board.held_out_mae == 0).all()


def test_the_choice_has_not_seen_the_network_left_out():
    table, (_, _, chosen) = trial()
    changed = table.assign(accuracy_loss=table.accuracy_loss.where(table.model != "net2", 0.9 - table.accuracy_loss))
    after = ranking.leave_out(changed, RIVALS).chosen
    own, columns = table.model == "net2", ["chosen", "predicted", "lower", "upper"]
    assert chosen.table().loc[own, columns].equals(after.table().loc[own, columns])
    assert not chosen.table().loc[~own, columns].equals(after.table().loc[~own, columns])


def test_the_choice_is_the_mean_of_the_best_by_hand(monkeypatch):
    monkeypatch.setattr(ranking, "BEST", 2)
    table, (_, held_out, _) = trial()
    rivals = {one: held_out[one] for one in RIVALS}
    chosen = ranking.choose(rivals)
    others, own = table.index[table.model != "net0"], table.index[table.model == "net0"]
    left = {one: table.accuracy_loss - trial.cross.loc["net0"] for one, trial in rivals.items()}
    error = {one: (values[others] ** 2).mean() for one, values in left.items()}
    first, second, _ = sorted(error, key=error.get)
    expected = (rivals[first].cross.loc["net0", own] + rivals[second].cross.loc["net0", own]) / 2
    assert chosen.own()[own].to_numpy() == pytest.approx(expected.to_numpy())
    assert chosen.frame.chosen[own[0]] == f"{first.name}; {second.name}"


def test_predictors_with_different_rows_are_compared_on_those_they_share(capsys):
    table, _ = trial()
    holes = table.assign(js_macs=table.js_macs.where(table.format != "INT_3"))
    found = ranking.leave_out(holes, RIVALS)
    rows = ranking.leaderboard(found).set_index("predictor").rows
    assert rows[["macs", "macs_normalized", CHOSEN]].tolist() == [55, 60, 55]
    assert "of 60 rows some have no value and are left out where it is needed: js_macs 5" in capsys.readouterr().out
    assert not (found.chosen.frame.format == "INT_3").any()


def test_best_for_a_network_of_which_little_is_known():
    _, found = trial()
    assert {one.name for one in found.best(["js_macs", "format"])} == {"macs"}
    assert len(found.best(["js_macs", "js_macs_normalized", "js_params_normalized"])) == 3
    without = found.best(["js_macs", "js_macs_normalized", "js_params_normalized"], without="net3")
    assert "; ".join(one.name for one in without) == found.chosen.frame.query("model == 'net3'").chosen.iloc[0]
    with pytest.raises(ValueError, match="expected a network with some of the columns js_macs, .* got none of them"):
        found.best(["format"])


def test_candidates_follow_the_columns():
    table, _ = trial()
    names = {one.name for one in ranking.candidates(table)}
    assert {"mean loss", "format name only", "js_macs: isotonic", "js_macs / INT_4: rational_3"} <= names
    assert {"similarities / INT_4: boosting"} <= names
    assert not any("pseudo" in name or "blend" in name for name in names)
    with_pseudo = table.assign(pseudo_accuracy_loss=0.1, pseudo_accuracy_loss_adjusted=0.2)
    more = [one for one in ranking.candidates(with_pseudo) if one.family == "blend"]
    assert [one.features[0] for one in more] == ["pseudo_accuracy_loss"] * 2
    assert len({one.name for one in ranking.candidates(with_pseudo)}) == len(ranking.candidates(with_pseudo))


def test_few_networks_have_scores_but_no_choice():
    table, several = trial()
    assert several.judged(table).own().equals(several.chosen.own())
    pair = ranking.leave_out(table[table.model.isin(["net0", "net1"])], RIVALS)
    board = ranking.leaderboard(pair)
    assert pair.chosen is None
    assert pair.judged(["js_macs"]).own().equals(pair.held_out[RIVALS[0]].own())
    assert board.coverage.isna().all()
    assert board.held_out_r2.notna().all()
    with pytest.raises(ValueError, match="expected at least 2 values of 'model' to leave one out, got 1"):
        ranking.leave_out(table[table.model == "net0"])


def test_losses_on_generated_images_are_preferred_where_the_network_has_them():
    table = published.losses(4).assign(pseudo_accuracy_loss=lambda frame: frame.accuracy_loss.round(1))
    lost = Predictor((PSEUDO,), "isotonic", "lost")
    found = ranking.leave_out(table, [*RIVALS, lost])
    assert found.best(table.columns) == (lost,)
    assert set(found.best(table.columns.drop(PSEUDO))) == set(RIVALS)


def test_a_trial_for_one_network_tries_what_may_forecast_it_and_forecasts_the_same():
    table = published.losses(4).assign(pseudo_accuracy_loss=lambda frame: frame.accuracy_loss.round(1))
    lost = Predictor((PSEUDO,), "isotonic", "lost")
    everything = ranking.leave_out(table, [*BASELINES, *RIVALS, lost])
    for columns, expected in ((table.columns, {lost}), (["js_macs"], {RIVALS[0]})):
        found = ranking.leave_out(table, [*BASELINES, *RIVALS, lost], columns=columns)
        assert set(found.held_out) == expected
        assert found.best(columns, without="net1") == everything.best(columns, without="net1")
        assert found.judged(columns).own().equals(everything.judged(columns).own())
    with pytest.raises(ValueError, match="expected a network with some of the columns js_macs, .* got none of them"):
        ranking.leave_out(table, RIVALS, columns=["format"])


def test_a_predictor_that_one_network_alone_has_is_named_and_left_out(capsys):
    table = published.losses(3)
    rare = table.assign(js_macs=table.js_macs.where(table.model == "net0"))
    found = ranking.leave_out(rare, RIVALS)
    assert set(found.held_out) == set(RIVALS[1:])
    assert "known of fewer than two values of model, so no predictors: js_macs" in capsys.readouterr().out


def test_judged_networks_have_the_intervals_that_a_new_one_would_have():
    table, several = trial()
    far = table.assign(depthwise_share=(table.model == "net4") * 1.0)
    plain, judged = several.judged(table), ranking.leave_out(far, RIVALS).judged(far)
    one, other = plain.table(), judged.table()
    strange = far.model == "net4"
    assert other.distance[~strange & (one.distance == 0)].eq(0).all()
    assert other[~strange].equals(one[~strange].assign(depthwise_share=0.0)[list(other)])
    assert other.distance[strange].eq(1.95).all()
    assert (other.outside[strange].str.contains("depthwise_share")).all()
    width = (other.upper - other.lower)[strange] - (one.upper - one.lower)[strange]
    assert (width > 0).all()
    found = forecasting.predict(
        far[strange], forecasting.fit(far[~strange], several.best(far, without="net4"))
    ).set_index("format")
    own = other[strange].set_index("format").loc[found.index]
    assert own.distance.to_numpy() == pytest.approx(found.distance.to_numpy())
    assert own.lower.to_numpy() == pytest.approx(found.lower.to_numpy())


@published.needed
def test_published_choice_beats_what_any_single_similarity_can():
    table = published.table()
    lost = [one for one in ranking.candidates(table) if one.features[0] == PSEUDO]
    board = ranking.leaderboard(ranking.leave_out(table, [BASELINES[1], *lost])).set_index("predictor")
    assert board.held_out_r2[CHOSEN] > 0.9618
    assert board.held_out_mae[CHOSEN] <= 0.036
    assert 0.85 <= board.coverage[CHOSEN] <= 0.95
    assert board.held_out_r2["format name only"] == pytest.approx(0.756, abs=0.002)
