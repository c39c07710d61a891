"""Where the results lie and what they say; a reference table with its provenance.

python -m rqlib.workbook.summary                                        every finished run, its key figures and report
python -m rqlib.workbook.summary --table NOTEBOOK CSV --preset NAME     its rows, mean and spread over the seeds
python -m rqlib.workbook.summary --part NOTEBOOK NAME CSV --preset NAME     the tables NAME.parquet of its runs

Only the runs of the preset are read. Rows of the CSV file with other settings, or of other runs, stay, so a long table
can grow preset by preset, and on several machines. ``--command TEXT`` instead of a preset: every finished run, a new
file.
"""

import argparse
import io
import warnings
from pathlib import Path

import pandas

from rqlib.core import files
from rqlib.workbook import results, seeds


def runs() -> pandas.DataFrame:
    """One row per finished run: notebook, dataset, model, seed, its summary, seconds, folder."""
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


def write_table(notebook: str, path: Path, command: str, preset: str = "") -> pandas.DataFrame:
    """Write the mean and spread over seeds as CSV, with the command that made the runs as the last column.

    Args:
        preset: only its runs are read, and rows that the file holds of other settings stay; empty: every finished
            run, and the file is written anew.
    """
    table = seeds.over_seeds(notebook, preset).assign(command=command)
    settings = list(table)[: list(table).index("seeds")]
    return _write(table, path, settings if preset else [])


def write_part(notebook: str, name: str, path: Path, command: str, preset: str = "") -> pandas.DataFrame:
    """Write a table that the runs of a notebook keep beside their rows as CSV, with where each part comes from.

    Args:
        name: of the table, as ``run.save`` had it. Runs without it are left out.
        preset: only its runs are read, and rows that the file holds of other runs stay; empty: as `write_table`.

    Raises:
        FileNotFoundError: no finished run has such a table.
    """
    parts = []
    for record in results.finished(notebook, preset=preset):
        table = record["folder"] / f"{name}.parquet"
        if table.is_file():
            values = {
                key: record["parameters"][key] for key in ("dataset", "test_images") if key in record["parameters"]
            }
            parts.append(files.load_table(table).assign(**values, **seeds.provenance(record, results.outputs_folder())))
    if not parts:
        made = f" by preset {preset}" if preset else ""
        raise FileNotFoundError(f"expected finished runs of {notebook}{made} with a table {name!r}, found none")
    return _write(pandas.concat(parts, ignore_index=True).assign(command=command), path, ["run"] if preset else [])


def _write(table: pandas.DataFrame, path: Path, same: list[str]) -> pandas.DataFrame:
    """Write a table as CSV, below those rows of the file of which no new row has the same values in these columns."""
    table, last = table.round(6), list(table)[list(table).index("machine") :]
    if same and path.is_file():
        there, new = (_as_text(source) for source in (path, io.StringIO(table.to_csv(index=False))))
        shared = [name for name in same if name in there]
        again = pandas.MultiIndex.from_frame(there[shared]).isin(pandas.MultiIndex.from_frame(new[shared]))
        if "seeds" in there:
            _say_fewer_seeds(there[again].merge(new, on=shared, suffixes=("_before", "_now")), path)
        table = pandas.concat([there[~again], new], ignore_index=True).fillna("")
        table = table[[name for name in table if name not in last] + last]
    with files.atomic(path) as part:
        table.to_csv(part, index=False)
    return table


def _say_fewer_seeds(replaced: pandas.DataFrame, path: Path) -> None:
    """Warn if rows of a file are replaced by rows that are means over fewer seeds."""
    fewer = replaced.seeds_now.astype(int) < replaced.seeds_before.astype(int)
    if fewer.any():
        warnings.warn(f"{path}: {fewer.sum()} rows are replaced by rows over fewer seeds", stacklevel=4)


def _say_written(table: pandas.DataFrame, path: str) -> None:
    """How long the file is, and its last row."""
    print(f"{path}: {len(table)} rows, the last one:\n{table.iloc[-1].to_string()}")


def _as_text(source: Path | io.StringIO) -> pandas.DataFrame:
    """A CSV file with every value as it is written, so that none changes when it is written again."""
    return pandas.read_csv(source, dtype=str, keep_default_na=False)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m rqlib.workbook.summary", description="Where the results lie.")
    parser.add_argument("--table", nargs=2, metavar=("NOTEBOOK", "CSV"), help="write the mean and spread over seeds")
    parser.add_argument("--part", nargs=3, metavar=("NOTEBOOK", "NAME", "CSV"), help="write a table of the runs")
    parser.add_argument("--preset", default="", help="read its runs alone; other rows of the CSV stay")
    parser.add_argument("--command", default="", help="what made the runs, kept in the table; make workbook PRESET=...")
    given = parser.parse_args(arguments)
    command = given.command or (f"make workbook PRESET={given.preset}" if given.preset else "")
    if given.table:
        notebook, path = given.table
        _say_written(write_table(notebook, Path(path), command, given.preset), path)
        return
    if given.part:
        notebook, name, path = given.part
        _say_written(write_part(notebook, name, Path(path), command, given.preset), path)
        return
    if given.preset:
        parser.error("--preset needs --table or --part")
    table = runs()
    if table.empty:
        raise SystemExit("no run has finished; make workbook")
    for notebook, rows in table.groupby("notebook"):
        shown = rows.drop(columns="notebook").dropna(axis="columns", how="all")
        print(f"{notebook}\n{shown.to_string(index=False, float_format='%.4f')}\n")
    print("In each folder: notebook.ipynb (executed), report.html (works offline), rows.parquet (its table).")


if __name__ == "__main__":
    main()
