import numpy
import pytest

from rqlib.prediction import conformal


def test_interval_is_the_ranked_error_by_hand():
    predicted, residual = numpy.zeros(9), numpy.array([0.1, -0.2, 0.3, -0.4, 0.5, -0.6, 0.7, -0.8, 0.9])
    lower, upper = conformal.interval(numpy.array([2.0]), predicted, residual, level=0.8)
    assert (lower[0], upper[0]) == pytest.approx((2 - 0.8, 2 + 0.8))  # rank ceil(10 x 0.8) = 8


def test_too_few_rows_for_a_level_give_no_bound_and_none_no_interval():
    lower, upper = conformal.interval(numpy.zeros(2), numpy.zeros(5), numpy.ones(5), level=0.9)
    assert numpy.isneginf(lower).all()
    assert numpy.isposinf(upper).all()
    assert numpy.isnan(conformal.interval(numpy.zeros(2), numpy.zeros(0), numpy.zeros(0))).all()


def test_intervals_are_local():
    predicted = numpy.concatenate([numpy.zeros(200), numpy.ones(200)])
    residual = numpy.concatenate([numpy.full(200, 0.01), numpy.full(200, 0.3)])
    lower, upper = conformal.interval(numpy.array([0.0, 1.0]), predicted, residual)
    assert upper - lower == pytest.approx([0.02, 0.6])


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
def test_coverage_of_exchangeable_rows(level):
    random = numpy.random.default_rng(0)
    value = random.random(4000)
    error = (0.1 + value) * random.standard_normal(4000)
    lower, upper = conformal.interval(value[:2000], value[2000:], error[2000:], level=level)
    truth = (value + error)[:2000]
    assert numpy.mean((lower <= truth) & (truth <= upper)) == pytest.approx(level, abs=0.03)


def test_far_from_the_calibration_rows_an_interval_is_the_widest_error_times_the_distance_by_hand():
    predicted, residual = numpy.zeros(9), numpy.array([0.1, -0.2, 0.3, -0.4, 0.5, -0.6, 0.7, -0.8, 0.9])
    values, distance = numpy.full(4, 2.0), numpy.array([0.0, 1e-9, 0.5, 2.0])
    lower, upper = conformal.interval(values, predicted, residual, level=0.8, distance=distance)
    assert upper - 2 == pytest.approx([0.8, 0.9, 0.9 * 1.5, 0.9 * 3])
    assert upper - 2 == pytest.approx(2 - lower)
    ordinary = conformal.interval(values, predicted, residual, level=0.8)
    inside = conformal.interval(values, predicted, residual, level=0.8, distance=numpy.zeros(4))
    assert all((one == other).all() for one, other in zip(ordinary, inside, strict=True))


def test_a_distance_never_narrows_an_interval():
    values, distance = numpy.zeros(1), numpy.ones(1)
    lower, upper = conformal.interval(values, numpy.zeros(5), numpy.ones(5), level=0.9, distance=distance)
    assert numpy.isneginf(lower).all()
    assert numpy.isposinf(upper).all()


def test_the_further_away_the_more_errors_count():
    predicted = numpy.arange(100) / 100
    residual = numpy.where(predicted < 0.5, 0.01, 0.3)
    values, distance = numpy.zeros(3), numpy.array([0.0, 0.5, 1.5])
    _, upper = conformal.interval(values, predicted, residual, distance=distance)
    assert upper == pytest.approx([0.01, 0.01 * 1.5, 0.3 * 2.5])  # of the nearest 30, 45 and 75 rows


def test_few_networks_can_promise_little(capsys):
    assert conformal.reachable(0.9, 3) == pytest.approx(0.75)
    assert "3 networks: intervals can promise at most 75% and are made for that, not 90%" in capsys.readouterr().out
    assert conformal.reachable(0.9, 9) == pytest.approx(0.9)
    assert conformal.reachable(0.5, 3) == 0.5
    assert not capsys.readouterr().out


def test_the_rank_is_what_would_have_held_the_level_on_each_network_by_hand():
    predicted, residual = numpy.zeros(60), numpy.repeat([0.1, 0.2, 0.3], 20)
    networks = numpy.repeat(["a", "b", "c"], 20)
    # Of 40 rows of the others none is below the errors of a, 20 are below those of b, and 40 below those of c.
    assert conformal.calibrated(predicted, residual, networks, 0.3) == pytest.approx(1 / 41)
    assert conformal.calibrated(predicted, residual, networks, 0.6) == pytest.approx(21 / 41)
    assert conformal.calibrated(predicted, residual, networks, 0.9) == pytest.approx(30 / 31), "of 30 neighbors"
    assert conformal.calibrated(predicted, residual, numpy.repeat("a", 60), 0.6) == 0.6, "nothing to compare with"


def test_every_network_counts_alike_however_many_rows_it_has():
    residual, networks = numpy.repeat([0.1, 0.2], [900, 100]), numpy.repeat(["a", "b"], [900, 100])
    assert conformal.calibrated(numpy.zeros(1000), residual, networks, 0.49) == pytest.approx(1 / 101)
    assert conformal.calibrated(numpy.zeros(1000), residual, networks, 0.51) > 0.9


def test_a_network_of_few_rows_does_not_limit_the_others():
    random = numpy.random.default_rng(0)
    residual, networks = random.standard_normal(244), numpy.repeat(["a", "b", "c", "d"], [1, 43, 100, 100])
    level = conformal.calibrated(random.random(244), residual, networks, 0.9)
    assert level == pytest.approx(0.9, abs=0.05)
    assert conformal.calibrated(numpy.zeros(41), numpy.arange(41.0), numpy.repeat(["a", "b"], [40, 1]), 0.9) > 0.9


def drawn(spread, random):
    """Eleven networks: the values of their 43 rows, and errors that are larger in some networks than in others."""
    values = random.random((11, 43))
    sizes = numpy.exp(spread * random.standard_normal((11, 1))) * (0.05 + 0.3 * values)
    return values, sizes * random.standard_normal((11, 43))


@pytest.mark.parametrize("spread", [0.0, 0.6, 1.0])
def test_coverage_of_a_network_left_out_whose_errors_are_larger_or_smaller_than_others(spread):
    random, groups, held = numpy.random.default_rng(1), numpy.repeat(numpy.arange(10), 43), {True: [], False: []}
    for _ in range(150):
        values, errors = drawn(spread, random)
        for known in held:
            lower, upper = conformal.interval(
                values[0], values[1:].ravel(), errors[1:].ravel(), groups=groups if known else None
            )
            held[known].append(numpy.mean((lower <= values[0] + errors[0]) & (values[0] + errors[0] <= upper)))
    assert numpy.mean(held[True]) == pytest.approx(0.9, abs=0.03)
    assert abs(numpy.mean(held[True]) - 0.9) <= abs(numpy.mean(held[False]) - 0.9) + 0.005
    assert numpy.mean(held[True]) != numpy.mean(held[False])
