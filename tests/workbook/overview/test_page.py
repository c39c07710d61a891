"""The page is one harmless file that asks nothing of the network and is read on a phone, on a desk and on paper."""

import html
import re
from pathlib import Path

import pandas
import pytest

from rqlib.workbook.overview import __main__ as overview
from tests.workbook.overview import made_up
from tests.workbook.test_report import loads

CHROMIUM = Path("/usr/bin/chromium")
HOSTILE = "<script>window.stolen = 1</script>"


def made(outputs: Path) -> str:
    """The page without plotly's script."""
    overview.main([])
    text = (outputs / "index.html").read_text()
    head, _, rest = text.partition("<script>")
    return head + rest.partition("</script>\n</head>")[2]


def test_every_treatment_question_and_report_is_on_it(outputs, capsys):
    made_up.everything(outputs)
    page = made(outputs)
    assert f"open {outputs / 'index.html'}" in capsys.readouterr().out
    assert "<title>SmallCNN on digits: what each treatment costs</title>" in page
    for text in ("If I quantize it", "INT_8 changes nothing measurable", "ATMC-8, 16 times smaller", "proved, 16/255"):
        assert text in page
    for report in outputs.glob("0*/*/report.html"):
        assert f'href="{report.relative_to(outputs).as_posix()}"' in page
    assert (outputs / "index.html").read_text().count("plotly.js v") == 1
    assert not loads(page.replace('<link rel="icon" href="data:,">', ""))
    assert page.count('class="plotly-graph-div"') == 2


def test_without_a_run_one_line_says_what_to_do(outputs):
    with pytest.raises(
        SystemExit, match="expected a finished run in .*, found none; make one: make workbook"
    ) as stopped:
        overview.main([])
    assert "\n" not in stopped.value.code
    assert not (outputs / "index.html").exists()


def test_unfinished_runs_are_counted_and_runs_without_a_report_named(outputs):
    made_up.train(outputs)
    made_up.write(outputs, "05_robust/a", {}, [{"a": 1}], status="running")
    made_up.write(outputs, "03_fit/bare", {}, [{"a": 1}], report=False)
    page = made(outputs)
    assert "1 run has not finished and is left out" in re.sub(r"\s+", " ", page)
    assert "bare (no report)" in page


def test_columns_that_hold_nothing_are_not_shown(outputs):
    made_up.train(outputs)
    page = made(outputs)
    headings = re.findall(r"<th>([^<]+)</th>", page)
    assert headings == ["accuracy", "size on disk", "operations (MACs)"]
    assert "<nav" not in page


def test_more_than_twelve_rows_are_behind_a_click(outputs):
    made_up.train(outputs)
    made_up.quantize(outputs, **{f"INT_{bits}": 0.98 for bits in range(2, 17)})
    page = made(outputs)
    assert "<summary>6 more treatments</summary>" in page
    shown = page[page.index("<tbody>") : page.index("<details>")]
    assert shown.count("<tr") == 12
    assert all(f">{name}<" in shown for name in ("float", "INT_8", "INT_4", "mix of formats, 4 bits per weight"))


def test_thirty_networks(outputs):
    for number in range(30):
        made_up.train(outputs, f"01_train/{number}", model=f"Network{number}")
        made_up.quantize(outputs, f"01_train/{number}", name=str(number))
    page = made(outputs)
    assert page.count('class="plotly-graph-div"') == 30
    assert "<summary>18 more networks</summary>" in page
    assert len(page) < 1_000_000


def test_hostile_names_are_harmless(outputs):
    made_up.train(outputs, f"01_train/{HOSTILE.replace('/', '_')}", model=HOSTILE, images=f"{HOSTILE}&amp;")
    made_up.train(outputs, "01_train/javascript:alert(1)", model="</script><b>")
    made_up.prune(outputs, "01_train/javascript:alert(1)")
    rows = outputs / "06_prune/SmallCNN/rows.parquet"
    pandas.read_parquet(rows).replace("hydra", HOSTILE).to_parquet(rows)
    page = made(outputs)
    assert f"{html.escape(HOSTILE)}, 10% of the weights" in page, "in the table"
    assert HOSTILE not in page
    assert "</script><b>" not in page
    assert 'href="javascript:' not in page
    assert "&lt;script&gt;window.stolen = 1&lt;/script&gt;" in page


@pytest.fixture
def browser():
    """A page of a Chromium without a network."""
    if not CHROMIUM.exists():
        pytest.skip("no /usr/bin/chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started.new_context(offline=True).new_page()
        started.close()


def test_in_a_browser(outputs, browser):
    made_up.everything(outputs)
    made_up.train(outputs, f"01_train/{HOSTILE.replace('/', '_')}", model=HOSTILE)
    made(outputs)
    requests, problems = [], []
    browser.on("request", lambda request: requests.append(request.url))
    browser.on("pageerror", lambda error: problems.append(str(error)))
    browser.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    for width in (390, 1600):
        browser.set_viewport_size({"width": width, "height": 900})
        browser.goto((outputs / "index.html").as_uri())
        browser.wait_for_selector(".plotly-graph-div .scatterlayer .trace path", state="attached", timeout=30_000)
        assert browser.evaluate("document.documentElement.scrollWidth") == width
        chart = browser.locator(".plotly-graph-div").first.bounding_box()
        assert 0.85 * min(width, 1240) < chart["width"] <= width
    assert browser.evaluate("window.stolen") is None
    assert browser.locator(".plotly-graph-div:has(.scatterlayer .trace)").count() == 2
    assert not problems
    assert all(url.startswith(("file:", "data:", "blob:")) for url in requests)
    browser.locator(".scatterlayer .trace:last-child .point").first.click(force=True)
    browser.wait_for_url("**/report.html")


def test_printed_the_charts_fit_the_paper(outputs, browser):
    made_up.everything(outputs)
    made(outputs)
    browser.goto((outputs / "index.html").as_uri())
    browser.wait_for_selector(".plotly-graph-div .scatterlayer .trace path", state="attached", timeout=30_000)
    browser.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    browser.wait_for_function("document.querySelector('.main-svg').getBoundingClientRect().width == 680")
