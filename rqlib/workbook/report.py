"""Executed notebooks as one HTML file that needs no network: figures work, formulas are MathML.

python -m rqlib.workbook.report NOTEBOOK... HTML [--title TITLE] [--hide-code]
"""

import argparse
from pathlib import Path

import nbformat
from docutils.utils.math import MathError, latex2mathml
from jinja2 import pass_context
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from plotly import io as plotly_io

from rqlib.core import files

FIGURE = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"

_OFFLINE = """{% extends 'lab/index.html.j2' %}
{% block html_head_js %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block jupyter_widgets %}{% endblock %}
{% block html_head_css %}<style>
math { font-family: "Latin Modern Math", "STIX Two Math", "Cambria Math", "DejaVu Math TeX Gyre", math; }
</style>{% endblock %}
"""  # JupyterLab's template without the scripts that it would load from the network


def write(path: str | Path, *notebooks: str | Path, title: str | None = None, hide_code: bool = False) -> Path:
    """Write executed notebooks, one below the other, as one HTML file, atomically.

    Widgets need a kernel and are left out; the static figure that follows each in a notebook stays.

    Args:
        title: of the page; by default the first heading, or the first notebook's name if there is no heading.
        hide_code: whether to leave the code cells' source out.

    Raises:
        ValueError: no notebook was given, a file is no notebook, or a formula is not LaTeX.
    """
    if not notebooks:
        raise ValueError("expected at least one executed notebook, got none")
    read = [_read(notebook) for notebook in notebooks]
    page = nbformat.v4.new_notebook(cells=[cell for notebook in read for cell in notebook.cells])
    page.metadata.title = title or _heading(page) or Path(notebooks[0]).stem
    _embed(page)
    exporter = HTMLExporter(raw_template=_OFFLINE, exclude_input=hide_code, exclude_input_prompt=True)
    exporter.exclude_output_prompt = exporter.embed_images = True
    exporter.register_filter("markdown2html", _markdown)
    body, _ = exporter.from_notebook_node(page, {"metadata": {"path": str(Path(notebooks[0]).parent)}})
    files.save_text(path, body)
    return Path(path)


def _read(path: str | Path) -> nbformat.NotebookNode:
    try:
        return nbformat.read(path, as_version=4)
    except (OSError, ValueError, KeyError, nbformat.ValidationError) as error:
        raise ValueError(f"{path}: expected an executed notebook (.ipynb), got {error}") from error


def _heading(page: nbformat.NotebookNode) -> str | None:
    lines = [line for cell in page.cells if cell.cell_type == "markdown" for line in cell.source.splitlines()]
    return next((line.removeprefix("# ") for line in lines if line.startswith("# ")), None)


def _embed(page: nbformat.NotebookNode) -> None:
    """Replace figures by HTML, the first of them with plotly.js, and remove widgets."""
    library = True
    for cell in page.cells:
        cell.get("outputs", [])[:] = [
            output for output in cell.get("outputs", []) if WIDGET not in output.get("data", {})
        ]
        for output in cell.get("outputs", []):
            figure = output.get("data", {}).get(FIGURE)
            if figure is not None:
                output.data = nbformat.from_dict({"text/html": _figure(figure, library)})
                library = False


def _figure(figure: dict, library: bool) -> str:
    parts = {name: figure[name] for name in ("data", "layout", "frames") if name in figure}
    return plotly_io.to_html(parts, full_html=False, include_plotlyjs=library, validate=False)


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
