"""The report is one file that asks nothing of the network, and its figures and formulas are drawn."""

import base64
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy
import pytest
from nbformat import v4
from plotly import graph_objects

from rqlib.core import files
from rqlib.workbook import answer, report

CHROMIUM = Path("/usr/bin/chromium")
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def figure(title: str) -> list:
    """An output of a cell, its numbers in base64, as plotly writes NumPy's."""
    spec = graph_objects.Figure(graph_objects.Scatter(y=numpy.array([1.0, 3.0, 2.0])), {"title": title}).to_json()
    assert "bdata" in spec
    return [v4.new_output("display_data", {report.FIGURE: json.loads(spec)})]


def executed(path: Path, *cells, metadata=None) -> Path:
    nbformat.write(v4.new_notebook(cells=list(cells), metadata=metadata or {}), path)
    return path


@pytest.fixture
def notebook(tmp_path) -> Path:
    (tmp_path / "pixel.png").write_bytes(PIXEL)
    widget = v4.new_output("display_data", {report.WIDGET: {"model_id": "1"}, "text/plain": "FigureWidget(...)"})
    table = v4.new_output("execute_result", {"text/html": "<table><td>a row of it</td></table>", "text/plain": "a row"})
    return executed(
        tmp_path / "05_robust.ipynb",
        v4.new_markdown_cell(
            "# Attacks\n\n![](pixel.png) in $\\|\\delta\\|_\\infty \\le \\epsilon$\n\n$$\\frac{a}{b}$$"
        ),
        v4.new_code_cell("secret_source = 1", outputs=figure("first figure") + figure("second figure")),
        v4.new_code_cell("widget", outputs=[widget, table]),
        v4.new_code_cell("print(1)", outputs=[v4.new_output("stream", name="stdout", text="a printed line")]),
        metadata={"widgets": {"application/vnd.jupyter.widget-state+json": {"state": {}}}},
    )


def loads(html: str) -> list[str]:
    """What a browser would load: addresses in tags other than links to click."""
    tags = re.findall(r"<(?:script|link|img|iframe|source|video|object|embed)\b[^>]*>", html)
    return [address for tag in tags for address in re.findall(r"(?:src|href|data)\s*=\s*[\"']?([^\"'> ]+)", tag)]


def test_nothing_is_loaded_and_plotly_is_embedded_once(notebook, tmp_path):
    html = report.write(tmp_path / "a.html", notebook).read_text()
    assert all(address.startswith("data:image/png;base64,") for address in loads(html))
    assert len(loads(html)) == 1
    assert not re.search(r"@import|url\(['\"]?http|import\(|require\(\[", re.sub(r"(?s)<script.*?</script>", "", html))
    assert html.count('id="plotly"') == 1
    assert html.count('class="plotly-graph-div"') == 2
    assert len(html) < 2_500_000, "plotly.js is packed"
    assert "MathJax" not in re.sub(r"(?s)<script.*?</script>", "", html)


def test_what_is_in_it(notebook, tmp_path):
    html = report.write(tmp_path / "a.html", notebook).read_text()
    assert "<title>Attacks</title>" in html
    for text in ("Attacks", "a row of it", "a printed line", "secret_source", "<mfrac>", "∞"):
        assert text in html
    for text in ("FigureWidget(...)", "\\infty", "widget-state"):
        assert text not in html


@pytest.fixture
def finished(tmp_path) -> Path:
    """A notebook that ends with the box of its answer, and printed progress on its way."""
    record = {"notebook": "05_robust", "answer": "Nothing withstands.", "title": "SmallCNN on digits", "summary": {}}
    box = v4.new_output("display_data", {"text/html": answer.box(record)})
    bars = "\repochs:   0%|          | 0/3 [00:00<?, ?it/s]\r          \r"
    warning = "/somewhere/rqlib/a.py:7: UserWarning: biases stay\n  mend(network)\n"
    streams = [v4.new_output("stream", name="stderr", text=text) for text in (bars, warning)]
    printed = v4.new_output("stream", name="stdout", text="05_robust: done in 3 s\n  all of it in /somewhere")
    return executed(
        tmp_path / "done.ipynb",
        v4.new_markdown_cell("# 05 Attack\n\n**Question.** Why?\n\n## First part\n\n## Second part"),
        v4.new_code_cell("run()", outputs=streams),
        v4.new_code_cell("run.finish()", outputs=[printed, box]),
    )


def test_the_answer_stands_first_then_the_contents_and_code_is_folded(finished, tmp_path):
    html = report.write(tmp_path / "a.html", finished).read_text()
    body = html[html.index("<body>") :]
    parts = [
        "<h1>05 Attack: SmallCNN on digits</h1>",
        "Nothing withstands.",
        'href="#First-part"',
        "Why?",
        '<details class="code">',
    ]
    places = [body.index(part) for part in parts]
    assert places == sorted(places)
    assert "<title>05 Attack: SmallCNN on digits</title>" in html
    assert html.count("<h1") == html.count("Nothing withstands.") == 1
    assert body.count('<details class="code">') == 2
    assert all(f'<h2 id="{name}"' in body for name in ("First-part", "Second-part"))
    assert "all of it in" not in body


def test_progress_is_left_out_and_warnings_say_only_what_they_say(finished, tmp_path):
    html = report.write(tmp_path / "a.html", finished).read_text()
    assert "0/3" not in html
    assert "Warning: biases stay" in html
    assert "mend(network)" not in html
    assert "/somewhere" not in html


def test_title_and_hidden_code(notebook, tmp_path):
    html = report.write(tmp_path / "a.html", notebook, title="Robust & quantized", hide_code=True).read_text()
    assert "<title>Robust &amp; quantized</title>" in html
    assert "secret_source" not in html
    assert "a printed line" in html


def test_several_notebooks_share_one_plotly(notebook, tmp_path):
    other = executed(tmp_path / "b.ipynb", v4.new_code_cell("x", outputs=figure("third")))
    html = report.write(tmp_path / "all.html", notebook, other).read_text()
    assert html.count('class="plotly-graph-div"') == 3
    assert html.count('id="plotly"') == 1


def test_formulas_in_code_and_prices_stay(tmp_path):
    path = executed(tmp_path / "a.ipynb", v4.new_markdown_cell("`$x$` costs 5\\$\n\n```\n$y^2$\n```"))
    html = report.write(tmp_path / "a.html", path).read_text()
    assert "<title>a</title>" in html
    assert "<code>$x$</code>" in html
    assert "$y^2$" in html
    assert "<math" not in html


def test_a_formula_that_is_none_is_named(tmp_path):
    path = executed(tmp_path / "a.ipynb", v4.new_markdown_cell("$\\foo$"))
    with pytest.raises(ValueError, match=r"formula '\\\\foo': Unknown LaTeX command"):
        report.write(tmp_path / "a.html", path)
    assert not (tmp_path / "a.html").exists()


@pytest.mark.parametrize("content", [None, "not json", "{}"])
def test_what_is_no_notebook_leaves_the_old_report(tmp_path, content):
    path, html = tmp_path / "a.ipynb", tmp_path / "a.html"
    html.write_text("old")
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match="a.ipynb: expected an executed notebook"):
        report.write(html, path)
    assert html.read_text() == "old"
    with pytest.raises(ValueError, match="expected at least one executed notebook"):
        report.write(html)


def test_command_line(notebook, tmp_path):
    html = tmp_path / "a.html"
    command = [sys.executable, "-W", "error", "-m", "rqlib.workbook.report"]
    subprocess.run([*command, notebook, html, "--title", "T", "--hide-code"], check=True, timeout=120)
    assert "<title>T</title>" in html.read_text()
    with pytest.raises(SystemExit, match="none.ipynb: expected an executed notebook") as stopped:
        report.main([str(tmp_path / "none.ipynb"), str(html)])
    assert "\n" not in stopped.value.code


@pytest.mark.skipif(not CHROMIUM.exists(), reason="no /usr/bin/chromium on this machine")
def test_a_browser_draws_it_without_the_network(notebook, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path, requests, problems = report.write(tmp_path / "a.html", notebook), [], []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_context(offline=True).new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(path.as_uri())
        page.wait_for_selector(".plotly-graph-div .scatterlayer .trace path", state="attached", timeout=30_000)
        figures = page.locator(".plotly-graph-div .main-svg:has(.scatterlayer .trace)").count()
        widths = page.eval_on_selector_all("math", "all => all.map(m => m.getBoundingClientRect().width)")
        browser.close()
    assert figures == 2
    assert len(widths) == 2
    assert min(widths) > 0
    assert not problems
    assert all(url.startswith(("file:", "data:", "blob:")) for url in requests)


PANELS = {
    "title": "SmallCNN, adversarial, on digits: a title that is longer than a line of a phone has room for",
    "xaxis": {"domain": [0, 0.44], "anchor": "y"},
    "xaxis2": {"domain": [0.56, 1], "anchor": "y2", "title": "epsilon (gray levels of 255), as in the other panel"},
    "yaxis": {"anchor": "x"},
    "yaxis2": {"anchor": "x2", "title": "success rate (fraction)"},
    "width": 760,
}


@pytest.mark.skipif(not CHROMIUM.exists(), reason="no /usr/bin/chromium on this machine")
def test_on_a_phone_nothing_is_cut_and_no_title_stands_on_another_panel(tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    panels = [graph_objects.Scatter(y=[1, 2]), graph_objects.Scatter(y=[1, 2], xaxis="x2", yaxis="y2")]
    bars = graph_objects.Bar(x=[1], y=["the_mean_of_the_five_best_predictors: rational_3"], orientation="h")
    drawn = [graph_objects.Figure(panels, PANELS), graph_objects.Figure(bars, {"title": "bars"})]
    outputs = [v4.new_output("display_data", {report.FIGURE: json.loads(figure.to_json())}) for figure in drawn]
    record = {"notebook": "03_fit", "title": "", "answer": "", "summary": {"best": "relative_error_params: rational_3"}}
    boxed = v4.new_output("display_data", {"text/html": answer.box(record)})
    cells = [v4.new_code_cell("", outputs=outputs), v4.new_code_cell("", outputs=[boxed])]
    path = report.write(tmp_path / "a.html", executed(tmp_path / "a.ipynb", *cells))
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_context(offline=True, viewport={"width": 390, "height": 800}).new_page()
        page.goto(path.as_uri())
        page.wait_for_function("document.querySelectorAll('.gtitle').length === 2", timeout=30_000)
        ends = page.eval_on_selector_all("svg text", "all => all.map(one => one.getBoundingClientRect().right)")
        starts = page.eval_on_selector_all("svg text", "all => all.map(one => one.getBoundingClientRect().left)")
        headings = page.eval_on_selector_all(".annotation-text", "all => all.map(one => one.textContent)")
        tick = page.locator(".ytick text", has_text="the_mean").bounding_box()
        whole = page.evaluate("document.documentElement.scrollWidth")
        browser.close()
    assert min(starts) >= 0
    assert max(ends) <= 390
    assert "success rate (fraction)" in headings
    assert tick["width"] < 390 / 2
    assert whole == 390


@pytest.mark.parametrize("notebook", sorted(files.project_root().glob("notebooks/*.ipynb")), ids=lambda path: path.stem)
def test_every_notebook_of_the_workbook_can_be_reported(tmp_path, notebook):
    assert "<h1" in report.write(tmp_path / "report.html", notebook).read_text()
