"""Which formats of a sweep are worth having: those that no smaller format beats, and the smallest good enough."""

from pandas import DataFrame


def undominated(sweep: DataFrame) -> DataFrame:
    """The rows of a sweep that no row of the same or a smaller size beats in accuracy, in order of size."""
    rows = sweep.sort_values(["coded_bits", "accuracy"], ascending=[True, False])
    before = rows.accuracy.cummax().shift(fill_value=-1.0)
    return rows[rows.accuracy > before]


def smallest(sweep: DataFrame, *, loss: float = 0.01) -> str:
    """Name of the smallest format whose accuracy is at most ``loss`` (a fraction) below that of the float network.

    ``"none"`` if every format loses more.
    """
    rows = undominated(sweep)
    enough = rows[rows.accuracy >= rows.float_accuracy - loss]
    return "none" if enough.empty else enough.format.iloc[0]
