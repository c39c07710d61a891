"""Executed notebooks as one HTML file that needs no network, made to be read from top to bottom.

The answer and its key figures stand first, then the contents; code is folded, long tables are, and progress bars are
left out. Figures work, and follow the width of the window; formulas are MathML.

python -m rqlib.workbook.report NOTEBOOK... HTML [--title TITLE] [--hide-code]
"""

import argparse
import html
import json
import re
import shlex
from pathlib import Path

from rqlib.core import quick_jsonschema  # noqa: F401 - before nbformat imports it

# isort: split
import nbformat
from bs4 import BeautifulSoup
from docutils.utils.math import MathError, latex2mathml
from jinja2 import pass_context
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from rqlib.core import files
from rqlib.workbook import report_page, report_tables
from rqlib.workbook.answer import BOX

FIGURE = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"

_PROGRESS = re.compile(r"\d+%\|.*\||\d+it \[")
_WARNING = re.compile(r"^\S+\.py:\d+: \w*Warning: (.*)\n  .*$", re.MULTILINE)
_HEADING = re.compile(r'<h2 id="([^"]+)">(.*?)<a class="anchor-link"', re.DOTALL)


def write(path: str | Path, *notebooks: str | Path, title: str | None = None, hide_code: bool = False) -> Path:
    """Write executed notebooks, one below the other, as one HTML file, atomically.

    Widgets need a kernel and are left out; the static figure that follows each in a notebook stays. Below a notebook
    that lies beside its run's ``params.yaml`` stands the command that repeats the run.

    Args:
        title: of the page; by default that of the first notebook: its heading, its network and its images.
        hide_code: whether to leave the code cells' source out.

    Raises:
        ValueError: no notebook was given, a file is no notebook, or a formula is not LaTeX.
    """
    if not notebooks:
        raise ValueError("expected at least one executed notebook, got none")
    titles, cells, drawn = [], [], 0
    for notebook in notebooks:
        read = _read(notebook)
        box = _taken_out(read, BOX)
        titles.append(_title(read, box) or Path(notebook).stem)
        _say_command(read, Path(notebook))
        drawn += _embed(read)
        cells += [_head(titles[-1], box), *read.cells]
    page = nbformat.v4.new_notebook(cells=cells)
    page.metadata.title = title or titles[0]
    exporter = HTMLExporter(raw_template=report_page.TEMPLATE, exclude_input=hide_code, exclude_input_prompt=True)
    exporter.exclude_output_prompt = exporter.embed_images = True
    exporter.register_filter("markdown2html", _markdown)
    folder = {"metadata": {"path": str(Path(notebooks[0]).parent)}}
    body, _ = exporter.from_notebook_node(page, folder | report_page.resources(figures=drawn > 0))
    files.save_text(path, body.replace(report_page.CONTENTS, _contents(body), 1))
    return Path(path)


def _read(path: str | Path) -> nbformat.NotebookNode:
    try:
        return nbformat.read(path, as_version=4)
    except (OSError, ValueError, KeyError, nbformat.ValidationError) as error:
        raise ValueError(f"{path}: expected an executed notebook (.ipynb), got {error}") from error


def _taken_out(page: nbformat.NotebookNode, css_class: str) -> str:
    """The HTML of the box with the answer, which the cell that showed it loses with all that it printed; or nothing."""
    for cell in page.cells:
        for output in cell.get("outputs", []):
            found = "".join(output.get("data", {}).get("text/html", ""))
            if css_class in found:
                cell.outputs = []
                return found
    return ""


def command(source: str | Path, out: str | Path) -> str:
    """The command that repeats a run by hand, from the parameters in its folder.

    Args:
        source: the notebook.
        out: where it is written when it has run, in the run's folder.
    """
    values, page = (str(Path(out).with_name(name)) for name in ("params.yaml", "report.html"))
    return shlex.join(["python", "-m", "rqlib.workbook.run", str(source), str(out), "-f", values, "--report", page])


def _say_command(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Add a cell with the command that repeats the run, if the notebook lies in its folder."""
    source = notebook.metadata.get("papermill", {}).get("input_path")
    if source and path.with_name("params.yaml").is_file():
        text = f"To run it again with the same parameters:\n\n```sh\n{command(source, path)}\n```"
        notebook.cells.append(nbformat.v4.new_markdown_cell(text))


def _title(page: nbformat.NotebookNode, box: str) -> str | None:
    """The first heading, which is taken out, and what the box says of network and images."""
    known = BeautifulSoup(box, "html.parser").find(class_=BOX)
    about = known["data-title"].partition(": ")[2] if known else ""
    for cell in page.cells:
        lines = cell.source.splitlines() if cell.cell_type == "markdown" else []
        for line in lines:
            if line.startswith("# "):
                cell.source = cell.source.replace(line, "", 1)
                return f"{line.removeprefix('# ')}: {about}" if about else line.removeprefix("# ")
    return about or None


def _head(title: str, box: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_markdown_cell(f"<h1>{html.escape(title)}</h1>\n\n{box}\n\n{report_page.CONTENTS}")


def _contents(body: str) -> str:
    """The headings of the page as links."""
    links = "".join(f'<li><a href="#{name}">{text}</a></li>' for name, text in _HEADING.findall(body))
    return f'<nav class="contents"><ol>{links}</ol></nav>' if links else ""


def _embed(page: nbformat.NotebookNode) -> int:
    """Make figures and tables HTML, remove widgets and progress bars; returns the number of figures."""
    drawn = 0
    for cell in page.cells:
        kept = [output for output in cell.get("outputs", []) if WIDGET not in output.get("data", {})]
        for output in kept:
            data = output.get("data", {})
            if FIGURE in data:
                drawn += 1
                output.data = nbformat.from_dict({"text/html": _figure(data[FIGURE])})
            elif "text/html" in data:
                data["text/html"] = report_tables.readable("".join(data["text/html"]))
            elif output.output_type == "stream":
                output.text = _printed("".join(output.text))
        if cell.cell_type == "code":
            cell.outputs = [one for one in kept if one.output_type != "stream" or one.text.strip()]
    return drawn


def _figure(figure: dict) -> str:
    """A figure as data, which `report_page.DRAW` draws; no wider than it was made, but for pictures."""
    parts = {name: figure[name] for name in ("data", "layout", "frames") if name in figure}
    width = parts.setdefault("layout", {}).get("width")
    height = parts["layout"].get("height", 480)
    style = f"height: {height}px;" + (f" max-width: {width}px" if width else "")
    written = json.dumps(parts).replace("<", "\\u003c")
    return (
        f'<div class="figure" style="{style}"><div class="plotly-graph-div" style="height: {height}px"></div>'
        f'<script type="application/json">{written}</script></div>'
    )


def _printed(text: str) -> str:
    """What was printed, without lines that only say how far something is, and warnings without where they arose."""
    lines = [line.rsplit("\r", 1)[-1] for line in text.split("\n")]
    text = "\n".join(line for line in lines if not _PROGRESS.search(line))
    return _WARNING.sub(r"Warning: \1", text)


class _Renderer(IPythonRenderer):
    """Markdown to HTML, and formulas to MathML, which browsers draw without a library."""

    def inline_math(self, body: str) -> str:
        return _mathml(body)

    def block_math(self, body: str) -> str:
        return _mathml(body, as_block=True)

    def latex_environment(self, name: str, body: str) -> str:
        return _mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", as_block=True)


def _mathml(formula: str, as_block: bool = False) -> str:
    try:
        return latex2mathml.tex2mathml(formula, as_block=as_block)
    except MathError as error:
        raise ValueError(f"formula {formula!r}: {error}") from error


@pass_context
def _markdown(context, source: str) -> str:
    cell, path = context.get("cell", {}), context["resources"]["metadata"]["path"]
    renderer = _Renderer(escape=False, attachments=cell.get("attachments", {}), embed_images=True, path=path)
    return MarkdownWithMath(renderer=renderer).render(source)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m rqlib.workbook.report", description="Executed notebooks as one offline HTML."
    )
    parser.add_argument("notebooks", nargs="+", metavar="NOTEBOOK")
    parser.add_argument("html", metavar="HTML")
    parser.add_argument("--title")
    parser.add_argument("--hide-code", action="store_true")
    given = parser.parse_args(arguments)
    try:
        write(given.html, *given.notebooks, title=given.title, hide_code=given.hide_code)
    except ValueError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
