import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from sklearn.isotonic import isotonic_regression

from rqlib.prediction import curves, fits

SINGLE = ("rational_2", "rational_3", "rational_4", "logistic", "isotonic", "polynomial", "boosting", "blend")


def column(values) -> numpy.ndarray:
    return numpy.asarray(values, dtype=float)[:, None]


@pytest.mark.parametrize("family", SINGLE)
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_every_curve_is_nondecreasing_and_stays_within_what_was_seen(family, data):
    count = data.draw(st.integers(3, 30))
    scale = 10.0 ** data.draw(st.integers(-6, 6))
    number = st.floats(-1, 1).map(lambda value: scale * round(value, 6))
    x = numpy.array(data.draw(st.lists(number, min_size=count, max_size=count).filter(lambda v: len(set(v)) > 1)))
    y = numpy.array(data.draw(st.lists(st.floats(-2, 5), min_size=count, max_size=count)))
    curve = fits.FAMILIES[family](column(x), y)
    span = x.max() - x.min()
    grid = numpy.sort(numpy.concatenate([numpy.linspace(x.min() - span, x.max() + span, 2000), x]))
    values = curve.predict(column(grid))
    assert numpy.diff(values).min() >= -1e-9 * max(numpy.ptp(y), 1)
    assert values.min() >= y.min() - 1e-6 * max(numpy.ptp(y), 1)
    assert values.max() <= y.max() + 1e-6 * max(numpy.ptp(y), 1)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=4, deadline=None)
def test_boosting_and_blend_are_nondecreasing_in_every_feature(seed):
    random = numpy.random.default_rng(seed)
    x, y = random.random((60, 3)), random.random(60)
    for family in ("boosting", "blend"):
        curve = fits.FAMILIES[family](x, y)
        for feature in range(3):
            line = numpy.repeat(x[:5], 200, axis=0)
            line[:, feature] = numpy.tile(numpy.linspace(-0.5, 1.5, 200), 5)
            assert numpy.diff(curve.predict(line).reshape(5, 200), axis=1).min() >= -1e-12


@pytest.mark.parametrize("degree", [2, 3, 4])
def test_rational_finds_a_rational_function_again(degree):
    x = numpy.geomspace(1e-4, 1e2, 80)
    powers = numpy.arange(degree + 1)
    q, r = 3.0 ** (powers * (powers - 1)), numpy.linspace(0.02, 0.9, degree + 1) ** 2
    terms = q * x[:, None] ** powers
    y = terms @ r / terms.sum(axis=1)
    curve = curves.rational(column(x), y, degree=degree)
    assert curve.predict(column(x)) == pytest.approx(y, abs=4e-3)


def test_rational_says_its_equation():
    x = numpy.geomspace(1e-3, 10, 40)
    curve = curves.rational(column(x), x**2 / (1 + x**2), degree=2)
    numbers = curve.parameters
    text = curve.equation.split(" = ", 1)[1].split(", u = ")[0].replace("^", "**").replace(" u", "*u")
    assert [eval(text, {"u": u}) for u in x] == pytest.approx(curve.predict(column(x)), abs=2e-3)
    assert set(numbers) == {"r0", "r1", "r2", "q0", "q1", "q2", "shift"}
    assert numbers["r0"] <= numbers["r1"] <= numbers["r2"]
    assert numbers["q0"] == 1


def test_logistic_finds_floor_plateau_midpoint_and_slope_again():
    x = numpy.geomspace(1e-5, 1e5, 200)
    y = 0.01 + 0.88 / (1 + (0.05 / x) ** 1.7)
    found = curves.logistic(column(x), y).parameters
    assert [found["floor"], found["plateau"]] == pytest.approx([0.01, 0.89], abs=1e-3)
    assert [found["midpoint"], found["slope"]] == pytest.approx([0.05, 1.7], rel=1e-2)


def test_polynomial_finds_a_nondecreasing_polynomial_again():
    x = numpy.linspace(1, 3, 50)
    curve = curves.polynomial(column(x), 2 + x**3)
    assert curve.predict(column(x)) == pytest.approx(2 + x**3, abs=1e-3)
    assert curve.predict(column([-9, 9])) == pytest.approx([3, 29], abs=1e-3)
    text = curve.equation.split(" = ", 1)[1].split(", t = ")[0].replace("^", "**").replace(" t", "*t")
    assert [eval(text, {"t": (value - 1) / 2}) for value in x] == pytest.approx(2 + x**3, abs=0.02)


def test_isotonic_is_the_nearest_nondecreasing_sequence():
    random = numpy.random.default_rng(0)
    x, y = numpy.arange(30.0), random.random(30)
    assert curves.isotonic(column(x), y).predict(column(x)) == pytest.approx(isotonic_regression(y))


def test_no_nondecreasing_curve_beats_isotonic_and_nothing_is_random():
    random = numpy.random.default_rng(1)
    x = random.random(60)
    y = x + 0.5 * random.random(60)
    first, second = (
        {name: numpy.sum((fits.FAMILIES[name](column(x), y).predict(column(x)) - y) ** 2) for name in SINGLE}
        for _ in range(2)
    )
    assert min(first, key=first.get) == "isotonic"
    assert first == second


def test_levels_agree_with_nonnegative_least_squares_where_the_sum_is_free():
    random = numpy.random.default_rng(2)
    basis = numpy.column_stack([numpy.ones(40), random.random((40, 3))])
    y = basis @ [0.0, 0.2, 0.1, 0.3] + 0.01 * random.random(40)
    y[0] = 1.0
    free = nnls(basis, y - y.min())[0]
    assert free.sum() < numpy.ptp(y)
    free[0] += y.min()
    assert curves._levels(basis, y) == pytest.approx(free, abs=1e-6)


@pytest.mark.parametrize("family", ["rational_4", "logistic"])
def test_slopes_are_the_derivative_of_the_curve_at_fixed_coefficients(family, monkeypatch):
    checked = []

    def check(basis, slopes, y, starts, bounds):
        position = starts[1] + numpy.linspace(-0.3, 0.4, len(starts[1]))
        levels = numpy.linspace(0.1, 0.3, basis(position).shape[1])
        steps = 1e-6 * numpy.eye(len(position))
        numeric = [(basis(position + step) - basis(position - step)) @ levels / 2e-6 for step in steps]
        checked.append(slopes(position, basis(position), levels) == pytest.approx(numpy.stack(numeric, 1), abs=1e-7))
        return position

    monkeypatch.setattr(curves, "_search", check)
    x = numpy.geomspace(1e-3, 10, 30)
    fits.FAMILIES[family](column(x), x / (1 + x))
    assert checked == [True]


def test_a_polynomial_through_rows_at_one_place_is_their_mean_there():
    curve = curves.polynomial(column([2.0] * 4), numpy.array([0.1, 0.2, 0.3, 0.4]))
    assert curve.predict(column([1.0, 2.0])) == pytest.approx(0.25)


def test_curves_without_a_shape():
    names = numpy.array([["INT_4"], ["INT_8"], ["INT_4"]], dtype=object)
    curve = curves.lookup(names, numpy.array([1.0, 0.0, 2.0]))
    assert curve.predict(numpy.array([["INT_4"], ["INT_8"], ["POT_3"]], dtype=object)).tolist() == [1.5, 0.0, 1.0]
    assert curves.mean(names, numpy.array([1.0, 0.0, 2.0])).predict(names).tolist() == [1.0, 1.0, 1.0]
    itself = curves.identity(column([0.1, 0.9]), numpy.array([0.5, 0.6]))
    assert itself.predict(column([0.2, 0.7])).tolist() == [0.2, 0.7]


@pytest.mark.parametrize("name", ["rational_3", "logistic"])
def test_a_feature_that_is_zero_everywhere_gives_the_mean(name):
    curve = fits.FAMILIES[name](numpy.zeros((6, 1)), numpy.array([0.1, 0.2, 0.3, 0.1, 0.2, 0.3]))
    assert curve.predict(numpy.zeros((2, 1))) == pytest.approx([0.2, 0.2], abs=1e-6)
