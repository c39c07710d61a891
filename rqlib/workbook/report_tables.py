"""Tables of pandas, made to be read: columns in words, no row numbers, nothing where nothing is known, few rows."""

import re

from bs4 import BeautifulSoup, Tag

ROWS = 12
"""So many rows are shown; the others are one click away."""

LARGE = 1000
"""A whole number of this size is a count, whatever stands beside it."""

WORDS = {
    "js": "JS divergence",
    "mae": "mean absolute error",
    "r2": "R²",
    "macs": "MACs",
    "params": "parameters",
    "pgd": "PGD",
    "fgsm": "FGSM",
    "wrm": "WRM",
    "linf": "L∞",
    "bops": "bit operations",
    "255": "(of 255)",
    "eot": "EOT",
    "holm": "(Holm)",
    "batchnorm": "BatchNorm",
    "frechet": "Fréchet",
}
"""Part of a column's name -> how it is said."""

NAMES = {"accuracy_loss": "relative loss", "duplicate_of": "same values as", "title": "network"}
"""A column's name -> how it is said, where its words alone would not tell."""

_WHOLE = re.compile(r"-?\d+\.0+")


def readable(html: str) -> str:
    """The HTML of a table of pandas, with at most `ROWS` rows and the others behind a click.

    Column names are said in words, a first column that only counts the rows is left out, cells without a value are
    empty, and columns of whole numbers lose their ``.0``. Anything else is returned as it is.
    """
    if "<thead" not in html:
        return html
    soup = BeautifulSoup(html, "html.parser")
    for style in soup.find_all("style", attrs={"scoped": True}):
        style.decompose()
    for table in [one for one in soup.find_all("table") if one.thead and one.tbody]:
        _name_index(table)
        _drop_row_numbers(table)
        for cell in table.thead.find_all("th"):
            cell.string = in_words(cell.get_text())
        _mend_cells(table)
        _fold(soup, table)
    return str(soup)


def in_words(name: str) -> str:
    """``relative_error_macs`` -> ``relative error MACs``."""
    return NAMES.get(name) or " ".join(WORDS.get(part, part) for part in name.split("_"))


def _name_index(table: Tag) -> None:
    """Put the name of the index, which pandas writes into a second header row, above its column."""
    rows = table.thead.find_all("tr")
    names = [cell.get_text(strip=True) for cell in rows[-1].find_all("th")] if len(rows) == 2 else []
    first = rows[0].th
    if names and names[0] and not any(names[1:]) and not first.get_text(strip=True):
        first.string = names[0]
        rows[1].decompose()


def _drop_row_numbers(table: Tag) -> None:
    """Leave out the first column if it only counts the rows from 0."""
    heads, rows = table.thead.find_all("tr"), table.tbody.find_all("tr")
    counted = [row.th.get_text(strip=True) if row.th else "" for row in rows] == [*map(str, range(len(rows)))]
    if rows and counted and not heads[0].th.get_text(strip=True):
        for row in [*heads, *rows]:
            row.th.decompose()


def _mend_cells(table: Tag) -> None:
    """Empty the cells without a value; write whole numbers as such: large ones, and those of a column of no others."""
    rows = [row.find_all("td") for row in table.tbody.find_all("tr")]
    for column in zip(*rows, strict=False):
        for cell in column:
            if cell.get_text(strip=True) in ("NaN", "None", "<NA>", "NaT", "nan"):
                cell.string = ""
        texts = [text for text in (cell.get_text(strip=True) for cell in column) if text]
        counts = bool(texts) and all(map(_WHOLE.fullmatch, texts)) and max(abs(float(text)) for text in texts) > 1
        for cell in column:
            text = cell.get_text(strip=True)
            if _WHOLE.fullmatch(text) and (counts or abs(float(text)) >= LARGE):
                cell.string = text.split(".")[0]


def _fold(soup: BeautifulSoup, table: Tag) -> None:
    """Move the rows after the first `ROWS` into a table of their own, behind a click."""
    rows = table.tbody.find_all("tr")
    if len(rows) <= ROWS:
        return
    details, rest = soup.new_tag("details"), soup.new_tag("table", attrs=table.attrs)
    summary = soup.new_tag("summary")
    summary.string = f"the other {len(rows) - ROWS} of {len(rows)} rows"
    body = soup.new_tag("tbody")
    body.extend([row.extract() for row in rows[ROWS:]])
    rest.append(BeautifulSoup(str(table.thead), "html.parser"))
    rest.append(body)
    details.extend([summary, rest])
    table.insert_after(details)
