"""Runs of several seeds, put together: their rows one below the other, or one row per setting with mean and spread."""

from pathlib import Path

import pandas

from rqlib.workbook import results

WHERE = ("run", "checkpoint", "compare", "weights", "table", "network", "known")
"""Columns that say where a run read and wrote. They tell no settings apart."""


def with_other_seeds(rows: pandas.DataFrame, notebook: str, settings: list[str]) -> pandas.DataFrame:
    """The rows of a run, and below them those of the finished runs of a notebook that have the same settings.

    These are runs of other seeds, and runs of the same seed with methods and sizes that this one lacks.

    Args:
        rows: of one run: seed, method, kept, and what was measured; each of these three conditions is kept once.
        settings: columns that must be equal. Name every column that tells networks apart, other than these three.
    """
    try:
        others = results.collect(notebook)
    except FileNotFoundError:
        return rows
    shared = [name for name in settings if name in rows and name in others]
    here, there = rows[shared].iloc[0], others[shared]
    same = ((there == here) | (there.isna() & here.isna())).all(axis=1)
    return pandas.concat([rows, others[same]], ignore_index=True).drop_duplicates(["seed", "method", "kept"])


def over_seeds(notebook: str, preset: str = "") -> pandas.DataFrame:
    """One row per setting, over the seeds of a notebook's finished runs (of a preset): their number, mean, spread.

    Numeric results get the columns ``NAME`` (mean) and ``NAME_std`` (sample standard deviation, absent for one
    seed). Texts and parameters tell the settings apart. The last columns say on what machine, in which precision
    and by which torch the rows were computed.
    """
    records, base = results.finished(notebook, preset=preset), results.outputs_folder()
    parameters = {name for record in records for name in record["parameters"]} | {"run", "seed"}
    rows = results.rows_of([record["folder"] for record in records], base)
    if rows is None:
        made = f" by preset {preset}" if preset else ""
        raise FileNotFoundError(f"expected finished runs of {notebook}{made} with rows in {base}, found none")
    rows = rows if "seed" in rows else rows.assign(seed=0)  # 03_fit draws nothing
    where = pandas.DataFrame([provenance(record, base) for record in records])
    rows = rows.merge(where, on="run", validate="many_to_one")
    tells_apart = parameters | ({"width"} if "model" in rows else set())  # of a network; in 03_fit, of an interval
    numeric = [name for name in rows.select_dtypes("number") if name not in tells_apart]
    apart = {*numeric, *WHERE, "seed"}
    settings = [name for name in rows if name not in apart and rows[name].nunique(dropna=False) > 0]
    grouped = rows.groupby(settings, dropna=False, sort=False)
    spread = grouped[numeric].std().add_suffix("_std")
    spread = spread.loc[:, spread.fillna(0).any()]
    parts = [grouped.seed.nunique().rename("seeds"), grouped[numeric].mean(), spread]
    table = pandas.concat(parts, axis=1).reset_index()
    last = [name for name in where if name != "run"]
    return table[[name for name in table if name not in last] + last]


def provenance(record: dict, base: Path) -> dict:
    """Where a finished run was computed: run (its folder below ``base``), machine, computed_in, torch."""
    machine, policy = record["machine"], record["policy"]
    processor = machine["gpu"] or f"{machine['processor']}, {machine['cores']} cores"
    run = record["folder"].relative_to(base).as_posix()
    return {"run": run, "machine": processor, "computed_in": policy["precision"], "torch": record["versions"]["torch"]}
