"""The answer of a run in a box: one sentence, and its key figures. It ends a notebook and begins its report."""

import html

from IPython import get_ipython
from IPython.display import HTML, display

from rqlib.workbook import report_tables

BOX = "rqlib-answer"
"""CSS class of the box, by which a report finds it."""

PHRASES = {"held out": "on networks left out:", "era": "accuracy under the long PGD"}
"""What stands in a name, in words as those of a table's column -> how a key figure says it."""

_STYLE = "border: 2px solid #0072B2; border-radius: 8px; padding: 6px 16px; margin: 8px 0; max-width: 60em"


def box(record: dict) -> str:
    """HTML of the box of a finished run (`recording.Run.finish`), with the title of its report as ``data-title``."""
    known = {name: value for name, value in record["summary"].items() if value not in (None, "") and value == value}
    rows = "".join(f"<tr><td>{in_words(name)}</td><td><b>{shown(value)}</b></td></tr>" for name, value in known.items())
    answer = f"<p><b>{html.escape(record['answer'])}</b></p>" if record["answer"] else ""
    about = f"{record['notebook']}: {record['title']}" if record["title"] else record["notebook"]
    figures = f"<table>{rows}</table>" if rows else ""
    return f'<div class="{BOX}" data-title="{html.escape(about)}" style="{_STYLE}">{answer}{figures}</div>'


def show(record: dict) -> None:
    """Display the box, if this is a notebook."""
    if hasattr(get_ipython(), "kernel"):
        display(HTML(box(record)))


def in_words(name: str) -> str:
    """``held_out_mae`` -> ``on networks left out: mean absolute error``."""
    words = f" {report_tables.in_words(name)} "
    for part, said in PHRASES.items():
        words = words.replace(f" {part} ", f" {said} ")
    return html.escape(words.strip())


def shown(value) -> str:
    """A value as text: whole numbers without a fraction, others with four significant digits."""
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) > 1 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else html.escape(str(value))
