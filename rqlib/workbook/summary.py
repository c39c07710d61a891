"""Where the results lie and what they say; a reference table with its provenance.

python -m rqlib.workbook.summary                                        every finished run, its key figures and report
python -m rqlib.workbook.summary --table NOTEBOOK CSV --command TEXT    its rows, mean and spread over the seeds
"""

import argparse
from pathlib import Path

import pandas

from rqlib.core import files
from rqlib.workbook import results

WHERE = ("run", "checkpoint", "compare", "weights", "table", "network")
"""Columns that say where a run read and wrote: no part of a table that travels."""


def runs() -> pandas.DataFrame:
    """One row a finished run: notebook, folder, seconds, its scalar parameters of note, its summary."""
    records = [record for notebook in notebooks() for record in results.finished(notebook)]
    return pandas.DataFrame([_row(record) for record in records])


def notebooks() -> list[str]:
    """Names of the notebooks, in order."""
    return sorted(path.stem for path in files.project_root().glob("notebooks/*.ipynb"))


def _row(record: dict) -> dict:
    values, folder = record["parameters"], record["folder"].relative_to(results.outputs_folder().parent)
    shown = {name: values[name] for name in ("dataset", "model", "seed") if values.get(name) not in (None, "")}
    return {
        "notebook": record["notebook"],
        **shown,
        **record["summary"],
        "seconds": record["seconds"],
        "folder": folder,
    }


def over_seeds(notebook: str) -> pandas.DataFrame:
    """Rows of a notebook's finished runs, the seeds of one setting together: their number, mean and spread.

    Numeric results get the columns ``NAME`` (mean) and ``NAME_std`` (sample standard deviation over
    seeds, absent for one seed); texts and parameters tell the settings apart. The last columns say
    on what machine, in which precision and from which commit.
    """
    records = results.finished(notebook)
    parameters = {name for record in records for name in record["parameters"]} | {"run", "seed"}
    rows = results.collect(notebook)
    rows = rows if "seed" in rows else rows.assign(seed=0)  # 03_fit draws nothing
    provenance = pandas.DataFrame([_provenance(record) for record in records])
    rows = rows.merge(provenance, on="run", validate="many_to_one")
    numeric = [name for name in rows.select_dtypes("number") if name not in parameters]
    settings = [
        name for name in rows if name not in {*numeric, *WHERE, "seed"} and rows[name].nunique(dropna=False) > 0
    ]
    grouped = rows.groupby(settings, dropna=False, sort=False)
    spread = grouped[numeric].std().add_suffix("_std")
    spread = spread.loc[:, spread.fillna(0).any()]
    table = pandas.concat(
        [grouped.seed.nunique().rename("seeds"), grouped[numeric].mean(), spread], axis=1
    ).reset_index()
    last = [name for name in provenance if name != "run"]
    return table[[name for name in table if name not in last] + last]


def _provenance(record: dict) -> dict:
    machine, policy = record["machine"], record["policy"]
    processor = machine["gpu"] or f"{machine['processor']}, {machine['cores']} cores"
    run = record["folder"].relative_to(results.outputs_folder()).as_posix()
    return {"run": run, "machine": processor, "computed_in": policy["precision"], "torch": record["versions"]["torch"]}


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m rqlib.workbook.summary", description="Where the results lie.")
    parser.add_argument("--table", nargs=2, metavar=("NOTEBOOK", "CSV"), help="write the mean and spread over seeds")
    parser.add_argument("--command", default="", help="the command that made the runs, kept in the table")
    given = parser.parse_args(arguments)
    if given.table:
        notebook, path = given.table
        table = over_seeds(notebook).assign(command=given.command)
        with files.atomic(Path(path)) as part:
            table.round(6).to_csv(part, index=False)
        print(table.to_string(index=False))
        return
    table = runs()
    if table.empty:
        raise SystemExit("no run has finished; make workbook")
    for notebook, rows in table.groupby("notebook"):
        shown = rows.drop(columns="notebook").dropna(axis="columns", how="all")
        print(f"{notebook}\n{shown.to_string(index=False, float_format='%.4f')}\n")
    print("In each folder: notebook.ipynb (executed), report.html (works offline), rows.parquet (its table).")


if __name__ == "__main__":
    main()
