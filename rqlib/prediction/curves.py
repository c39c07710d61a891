"""Curves from a predictor to a loss that cannot fall: one function for each family.

Rational, logistic and polynomial curves share one idea. Take basis functions 1 = B_0(x), B_1(x), ..., B_n(x), each
nondecreasing and within [0, 1]. Then

    curve(x) = lowest + (highest - lowest) sum_k c_k B_k(x),   c_k >= 0,   sum_k c_k <= 1

is nondecreasing and stays between the lowest and the highest loss seen, whatever the coefficients are. The coefficients
solve a nonnegative least-squares problem, which has one solution. The position of the basis (at most four numbers) is
found by quasi-Newton steps from two fixed starts. Nothing is random.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy
import scipy
from numpy import ndarray
from threadpoolctl import ThreadpoolController

TINY = 1e-300
LOG_ZERO = math.log(TINY)
SUM_WEIGHT = 1e3
"""Weight of the row that keeps the sum of the coefficients at 1."""


@functools.cache
def _libraries() -> ThreadpoolController:
    """The libraries that compute in threads. It first loads all that a curve needs, so that none is missed."""
    import sklearn.ensemble  # noqa: F401 - it loads the libraries of scipy, too

    return ThreadpoolController()


def one_thread(function: Callable) -> Callable:
    """Let a function use one thread: with so few rows more threads only wait for each other."""

    @functools.wraps(function)
    def alone(*arguments):
        with _libraries().limit(limits=1):
            return function(*arguments)

    return alone


@dataclass(frozen=True)
class Curve:
    """A fitted curve.

    Attributes:
        predict: features (N, D) -> losses (N,).
        parameters: its numbers, by name.
        equation: as text, ``loss = ...``.
    """

    predict: Callable[[ndarray], ndarray]
    parameters: dict[str, float]
    equation: str


def mean(x: ndarray, y: ndarray) -> Curve:
    """The mean loss, whatever x is: the baseline, whose R2 is 0 in sample."""
    level = float(y.mean())
    return Curve(lambda x: numpy.full(len(x), level), {"mean": level}, f"loss = {level:.4g}")


def identity(x: ndarray, y: ndarray) -> Curve:
    """The feature itself, which needs no other network: for losses measured on generated images."""
    return Curve(lambda x: x[:, 0].astype(float), {"slope": 1.0}, "loss = x")


def lookup(x: ndarray, y: ndarray) -> Curve:
    """The mean loss of the rows with the same name, or of all rows for a new name; x is one column of names."""
    names = numpy.asarray(x[:, 0], dtype=str)
    known = {name: float(y[names == name].mean()) for name in dict.fromkeys(names)}
    rest = float(y.mean())
    return Curve(
        lambda x: numpy.array([known.get(str(name), rest) for name in x[:, 0]]),
        known,
        f"loss = mean loss of the same name ({len(known)} names)",
    )


def isotonic(x: ndarray, y: ndarray) -> Curve:
    """The nondecreasing function that is nearest to the rows.

    No nondecreasing curve in one feature has a higher R2. The function is linear between levels and flat outside the
    range seen (pool adjacent violators, scikit-learn).
    """
    from sklearn.isotonic import IsotonicRegression

    model = IsotonicRegression(out_of_bounds="clip").fit(_only(x), y)
    levels = len(numpy.unique(model.y_thresholds_))
    return Curve(lambda x: model.predict(_only(x)), {"levels": levels}, f"loss = nondecreasing, {levels} levels")


def rational(x: ndarray, y: ndarray, *, degree: int) -> Curve:
    """A bounded rational function of degree n / n, nondecreasing for u >= 0.

        loss = sum_k r_k q_k u^k / sum_k q_k u^k,   q_k > 0,   r_0 <= r_1 <= ... <= r_n

    As u grows, the weights q_k u^k / sum_j q_j u^j move to higher k (monotone likelihood ratio), so the weighted mean
    of the nondecreasing r_k cannot fall. u = x, shifted to start at 0 if x has negative values.
    q_k = prod_{j <= k} 1 / b_j, where b_j is the u at which the weights j - 1 and j are equal.
    """
    shift = min(0.0, float(x.min()))
    log_u = _log_shifted(x, shift)

    def basis(log_u: ndarray, log_b: ndarray) -> ndarray:
        powers = numpy.cumsum(log_u[:, None] - log_b, axis=1)
        weights = scipy.special.softmax(numpy.column_stack([numpy.zeros(len(log_u)), powers]), axis=1)
        return numpy.cumsum(weights[:, ::-1], axis=1)[:, ::-1]

    def slopes(log_b: ndarray, columns: ndarray, levels: ndarray) -> ndarray:
        later = numpy.cumsum((columns * levels)[:, ::-1], axis=1)[:, ::-1]  # sum_{j >= k} c_j B_j
        return columns[:, 1:] * (later[:, :1] - numpy.cumsum(levels)[1:]) - later[:, 1:] + (columns * levels)[:, 1:]

    low, middle, high = _landmarks(log_u, y)
    starts = [numpy.full(degree, middle), numpy.linspace(middle, high, degree)]
    log_b = _search(lambda log_b: basis(log_u, log_b), slopes, y, starts, [(low - 3, high + 3)] * degree)
    levels = _levels(basis(log_u, log_b), y)
    q = numpy.exp(-numpy.concatenate([[0], numpy.cumsum(log_b)]))
    r = numpy.cumsum(levels)
    text = f"loss = ({_polynomial(q * r)}) / ({_polynomial(q)})"
    return Curve(
        lambda x: basis(_log_shifted(x, shift), log_b) @ levels,
        {f"r{k}": float(v) for k, v in enumerate(r)} | {f"q{k}": float(v) for k, v in enumerate(q)} | {"shift": shift},
        text + _where(shift),
    )


def logistic(x: ndarray, y: ndarray) -> Curve:
    """An S-curve in log x from a floor to a plateau, which is the loss of a network that only guesses.

        loss = floor + (plateau - floor) / (1 + (midpoint / u)^slope)

    u is that of `rational`. The plateau is at most the highest loss seen.
    """
    shift = min(0.0, float(x.min()))
    log_u = _log_shifted(x, shift)

    def basis(log_u: ndarray, theta: ndarray) -> ndarray:
        rise = scipy.special.expit(numpy.exp(theta[1]) * (log_u - theta[0]))
        return numpy.column_stack([numpy.ones(len(log_u)), rise])

    def slopes(theta: ndarray, columns: ndarray, levels: ndarray) -> ndarray:
        steep, step = numpy.exp(theta[1]), columns[:, 1]
        return levels[1] * (step * (1 - step) * steep * numpy.stack([numpy.full(len(step), -1.0), log_u - theta[0]])).T

    low, middle, high = _landmarks(log_u, y)
    starts = [numpy.array([middle, 0.0]), numpy.array([(low + high) / 2, 0.0])]
    theta = _search(lambda theta: basis(log_u, theta), slopes, y, starts, [(low - 3, high + 3), (-3.0, 4.0)])
    levels = _levels(basis(log_u, theta), y)
    floor, plateau, midpoint, slope = levels[0], levels.sum(), numpy.exp(theta[0]), numpy.exp(theta[1])
    text = f"loss = {floor:.4g} + {plateau - floor:.4g} / (1 + ({midpoint:.4g} / u)^{slope:.4g})"
    return Curve(
        lambda x: basis(_log_shifted(x, shift), theta) @ levels,
        {"floor": floor, "plateau": plateau, "midpoint": midpoint, "slope": slope, "shift": shift},
        text + _where(shift),
    )


def polynomial(x: ndarray, y: ndarray, *, degree: int = 4) -> Curve:
    """A polynomial that is nondecreasing on the range seen and flat outside it.

    It has nondecreasing coefficients r_k in Bernstein's basis of t = (x - low) / (high - low). They make any polynomial
    nondecreasing, though not every nondecreasing polynomial has them.
    """
    low, high = float(x.min()), float(x.max())

    def basis(x: ndarray) -> ndarray:
        t = numpy.clip((_only(x) - low) / max(high - low, TINY), 0, 1)
        return scipy.stats.binom.sf(numpy.arange(-1, degree)[None, :], degree, t[:, None])

    levels = _levels(basis(x), y)
    r = numpy.cumsum(levels)
    power = scipy.interpolate.PPoly.from_bernstein_basis(scipy.interpolate.BPoly(r[:, None], [0, 1])).c[::-1, 0]
    text = f"loss = {_polynomial(power, 't')}, t = (x - {low:.4g}) / {high - low:.4g} within [0, 1]"
    numbers = {f"r{k}": float(v) for k, v in enumerate(r)} | {"low": low, "high": high}
    return Curve(lambda x: basis(x) @ levels, numbers, text)


def boosting(x: ndarray, y: ndarray) -> Curve:
    """Gradient-boosted trees that are nondecreasing in every feature (scikit-learn, ``monotonic_cst``)."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    trees = HistGradientBoostingRegressor(
        max_iter=50, max_leaf_nodes=8, min_samples_leaf=10, monotonic_cst=[1] * x.shape[1], early_stopping=False
    )
    one_thread(trees.fit)(x, y)
    predict = one_thread(trees.predict)
    return Curve(predict, {"trees": trees.n_iter_}, f"loss = sum of {trees.n_iter_} nondecreasing trees")


def blend(x: ndarray, y: ndarray) -> Curve:
    """The mean of a rational 3/3 of the first feature, which is smooth, and of boosting on all features."""
    smooth, trees = rational(x[:, :1], y, degree=3), boosting(x, y)
    return Curve(
        lambda x: (smooth.predict(x[:, :1]) + trees.predict(x)) / 2,
        smooth.parameters | trees.parameters,
        f"loss = 1/2 [{smooth.equation.removeprefix('loss = ')}] + 1/2 [{trees.equation.removeprefix('loss = ')}]",
    )


def _only(x: ndarray) -> ndarray:
    """(N, 1) -> (N,)."""
    return x[:, 0].astype(float)


def _log_shifted(x: ndarray, shift: float) -> ndarray:
    """log u of the only feature, u = max(x - shift, 0); `LOG_ZERO` for u = 0."""
    return numpy.log(numpy.maximum(_only(x) - shift, TINY))


def _landmarks(log_u: ndarray, y: ndarray) -> tuple[float, float, float]:
    """log u of the smallest positive row, of the row at half the rise of y, and of the largest row."""
    positive = log_u > LOG_ZERO
    if not positive.any():
        return 0.0, 0.0, 0.0  # every row lies at 0, where the curve is level wherever it bends
    order = numpy.argsort(log_u[positive], kind="stable")
    log_u, rise = log_u[positive][order], numpy.maximum.accumulate(y[positive][order])
    return float(log_u[0]), float(numpy.interp((rise[0] + rise[-1]) / 2, rise, log_u)), float(log_u[-1])


@one_thread
def _search(basis: Callable, slopes: Callable, y: ndarray, starts: list[ndarray], bounds: list) -> ndarray:
    """The position of the basis (position -> columns) with the least squared error (variable projection)."""
    # The best coefficients c are solved for at every position. The error's derivative by the position is then that at
    # fixed c (envelope theorem): slopes (position, columns, c) -> derivative (N, positions) of columns @ c.
    scale = max(float(numpy.sum((y - y.mean()) ** 2)), TINY)

    def error(position: ndarray) -> tuple[float, ndarray]:
        columns = basis(position)
        levels = _levels(columns, y)
        left = columns @ levels - y
        return float(left @ left) / scale, 2 / scale * (left @ slopes(position, columns, levels))

    found = [scipy.optimize.minimize(error, start, jac=True, bounds=bounds, method="L-BFGS-B") for start in starts]
    return min(found, key=lambda one: one.fun).x


def _levels(basis: ndarray, y: ndarray) -> ndarray:
    """Least squares for coefficients (n + 1,) >= 0 of basis columns (N, n + 1) that keep the curve within the y."""
    lowest, span = y.min(), max(float(numpy.ptp(y)), TINY)
    rows = numpy.column_stack([basis, numpy.zeros(len(y))])  # the last column takes what is left of the sum
    rows = numpy.vstack([rows, numpy.full(rows.shape[1], SUM_WEIGHT)])
    share = scipy.optimize.nnls(rows, numpy.append((y - lowest) / span, SUM_WEIGHT))[0]
    levels = span * share[:-1] / share.sum()
    levels[0] += lowest
    return levels


def _polynomial(coefficients: ndarray, name: str = "u") -> str:
    powers = ["", f" {name}"] + [f" {name}^{k}" for k in range(2, len(coefficients))]
    return " + ".join(f"{value:.4g}{power}" for value, power in zip(coefficients, powers, strict=True))


def _where(shift: float) -> str:
    return f", u = max(x - ({shift:.4g}), 0)" if shift else ", u = x"
