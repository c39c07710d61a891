"""Divide a budget of bits among layers by how sensitive each is."""

import pandas


def allocate(sensitivity: pandas.DataFrame, budget_bits: float, *, error: str = "logit_error") -> dict[str, str]:
    """Format of each layer, such that the weights fit the budget and the summed error stays small.

    Every layer starts at its most exact format. Then, until the budget is kept, the step to a smaller format
    is taken that adds the least error for each bit it saves. The errors of layers are taken to add up.

    Args:
        sensitivity: one row a layer and format with columns layer, format, coded_bits and the error;
            ``quantization.sweep(..., per_layer=True)``.
        budget_bits: of all layers' weights together.

    Returns:
        Layer -> format name, for `quantization.ptq`.

    Raises:
        ValueError: even the smallest formats exceed the budget.
    """
    candidates = {layer: rows.to_dict("records") for layer, rows in sensitivity.groupby("layer", sort=False)}
    least = sum(min(row["coded_bits"] for row in rows) for rows in candidates.values())
    if least > budget_bits:
        raise ValueError(f"a budget of {budget_bits:.0f} bits cannot be kept: the smallest formats take {least:.0f}")
    chosen = {layer: min(rows, key=lambda row: (row[error], row["coded_bits"])) for layer, rows in candidates.items()}
    while sum(row["coded_bits"] for row in chosen.values()) > budget_bits:
        steps = ((layer, row) for layer, rows in candidates.items() for row in rows)
        smaller = [(layer, row) for layer, row in steps if row["coded_bits"] < chosen[layer]["coded_bits"]]
        layer, row = min(smaller, key=lambda step: _error_per_bit(chosen[step[0]], step[1], error))
        chosen[layer] = row
    return {layer: row["format"] for layer, row in chosen.items()}


def _error_per_bit(now: dict, then: dict, error: str) -> float:
    return (then[error] - now[error]) / (now["coded_bits"] - then["coded_bits"])
