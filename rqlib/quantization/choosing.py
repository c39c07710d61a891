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


def verdict(sweep: DataFrame, images: int, *, loss: float = 0.01) -> str:
    """One sentence: the smallest format within a loss of so many points, beside the float network."""
    name, whole = smallest(sweep, loss=loss), sweep.float_accuracy.iloc[0]
    within = f"at most {100 * loss:g} {'point' if loss == 0.01 else 'points'}"
    if name == "none":
        best = sweep.loc[sweep.accuracy.idxmax()]
        return f"Every format loses more than {within.removeprefix('at most ')}; {best.format} loses least, " + (
            f"{100 * (whole - best.accuracy):.1f} points, and is right on {best.accuracy:.1%} of {images:,} images."
        )
    row = sweep[sweep.format == name].iloc[0]
    return (
        f"{name} is the smallest format that loses {within}: its weights take {row.bits / 32:.3g} of the space, and "
        f"it is right on {row.accuracy:.1%} of {images:,} test images, the float network on {whole:.1%}."
    )
