"""The tables that come with the workbook: networks measured before, for whoever has measured none."""

import pandas
from pandas import DataFrame

from rqlib.core import files
from rqlib.core.vocabulary import did_you_mean
from rqlib.prediction import titles
from rqlib.prediction.published import FLOAT, GENERATORS, NETWORK, SETTING
from rqlib.prediction.settings import filled

TABLES = {"02_quantize": "quantize.csv", "04_generator": "pseudo.csv"}
"""Notebook -> the table of its rows in outputs/reference."""


def enough(rows: DataFrame, source: str = "02_quantize") -> DataFrame:
    """The rows that runs of a notebook gave, if they are of two networks at least; else those of `reference`.

    Two are needed because predictors are judged on a network left out.
    """
    quantized = rows[rows.format != FLOAT]
    several = titles.network_names(quantized).nunique() > 1
    return rows if several else reference(source, instead_of="runs on two networks")


def reference(source: str = "02_quantize", *, instead_of: str = "finished run") -> DataFrame:
    """Rows of networks that were measured before, as the runs of a notebook would give them; prints which table it is.

    Rows of `02_quantize` also get the losses on generated images, where `04_generator` measured the same network in
    the same setting.

    Raises:
        ValueError: a notebook without such a table.
        FileNotFoundError: the table is not there.
    """
    if source not in TABLES:
        raise ValueError(did_you_mean("source", source, TABLES))
    rows = _read(source)
    if source == "02_quantize":
        rows = _with_losses(filled(rows), filled(_read("04_generator")))
    quantized = rows[rows.format != FLOAT]
    names = ", ".join(quantized.model.unique())
    print(f"no {instead_of} of {source}: the shipped table outputs/reference/{TABLES[source]} is used ({names})")
    return rows


def _read(source: str) -> DataFrame:
    path = files.project_root() / "outputs" / "reference" / TABLES[source]
    if not path.is_file():
        raise FileNotFoundError(
            f"expected finished runs of {source}, or the shipped table {path}, found neither; "
            f"run notebooks/{source}.ipynb"
        )
    return pandas.read_csv(path)


def _with_losses(rows: DataFrame, pseudo: DataFrame) -> DataFrame:
    keys = [name for name in (*NETWORK, *SETTING, "format") if name in rows and name in pseudo]
    lost = [name for name in GENERATORS.values() if name in pseudo and name not in rows]
    return rows.merge(pseudo[pseudo.format != FLOAT][keys + lost], how="left", on=keys, validate="m:1")
