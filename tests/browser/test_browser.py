"""JupyterLab in a browser: a notebook runs without an error, and moving its widget changes the figure."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.notebooks.small import alone, environment, prepare

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync"]
CELLS = """() => { const cells = window.jupyterapp.shell.currentWidget.content.model.cells; const states = [];
  for (let i = 0; i < cells.length; i++) { const cell = cells.get(i); if (cell.type === 'code')
    states.push([cell.executionState, cell.executionCount, cell.outputs.toJSON().filter(o => o.output_type === 'error')
      .map(o => o.ename + ': ' + o.evalue)]); }
  return states; }"""
OPEN = """async path => { const app = window.jupyterapp;
  const panel = await app.commands.execute('docmanager:open', {path, factory: 'Notebook'});
  await panel.context.ready; await panel.sessionContext.ready; app.shell.activateById(panel.id);
  await panel.sessionContext.session.kernel.info; }"""
SHOWN = "path => window.jupyterapp.shell.currentWidget.context?.path === path"
DONE = "(f => { const s = eval(f)(); return s.some(c => c[2].length) || s.every(c => c[0] === 'idle' && c[1]) })"
BLANK = ".jp-NotebookPanel:not(.lm-mod-hidden) .js-plotly-plot:not(:has(.gtitle))"
MOVES = {  # notebook -> (kind of control, which of them, what to choose, what the figure's title then says)
    "01_train": ("slider", 0, None, "image 1 "),
    "02_quantize": ("dropdown", 0, "features.2.conv", "features.2.conv in INT_4"),
    "06_prune": ("dropdown", 0, "classifier.linear1", "classifier.linear1: 0.1 of"),
    "03_fit": ("dropdown", 1, "isotonic", "isotonic of"),
    "04_generator": ("slider", 0, None, "45% 0, 55% 1"),
    "05_robust": ("slider", 0, None, "Image 1 (label"),
}

pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine (Debian: apt-get install chromium)"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Folder and address of a JupyterLab on loopback that serves the folder and keeps its settings there."""
    folder = tmp_path_factory.mktemp("lab")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "labconfig").mkdir()
    overrides = {
        "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
        "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
    }
    (folder / "labconfig/default_setting_overrides.json").write_text(json.dumps(overrides))
    settings = {name: str(folder / name) for name in ("JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR")}
    settings |= {"JUPYTER_CONFIG_DIR": str(folder), "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces")}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"]
    command += ["--ServerApp.port_retries=0", "--IdentityProvider.token=test", f"--ServerApp.root_dir={folder}"]
    command += ["--expose-app-in-browser"]
    with (folder / "lab.log").open("w") as log:
        started = environment(folder / "outputs") | settings
        server = subprocess.Popen(command, env=started, stdout=log, stderr=log, start_new_session=True)
        try:
            yield folder, _answering(f"http://127.0.0.1:{port}")
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(30)


def _answering(address: str) -> str:
    for _ in range(240):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{address}/api/status?token=test", timeout=1).close()
            return address
        time.sleep(0.5)
    raise TimeoutError(f"JupyterLab does not answer at {address}")


@pytest.fixture(scope="module")
def page(lab):
    """JupyterLab in one page of one browser, for all notebooks."""
    from playwright.sync_api import sync_playwright

    _, address = lab
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=QUIET)
        page = browser.new_page(viewport={"width": 1200, "height": 1600})
        page.set_default_timeout(120_000)
        page.goto(f"{address}/lab?token=test&reset")
        page.wait_for_function("window.jupyterapp?.restored")
        page.evaluate("window.jupyterapp.restored")
        yield page
        browser.close()


@pytest.mark.parametrize("notebook", MOVES)
def test_the_widget_moves(lab, page, notebook):
    folder, _ = lab
    prepare(notebook, folder / f"{notebook}.ipynb", alone(notebook, folder))
    page.evaluate(OPEN, f"{notebook}.ipynb")
    page.wait_for_function(SHOWN, arg=f"{notebook}.ipynb")
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")
    page.wait_for_function(DONE, arg=CELLS, timeout=300_000)
    errors = [error for cell in page.evaluate(CELLS) for error in cell[2]]
    assert not errors
    assert not page.locator(BLANK).count(), "a figure was left blank"
    title, moved = _move(page, *MOVES[notebook])
    title.wait_for()
    print(f"{notebook}: a move takes {time.monotonic() - moved:.2f} s")
    title.scroll_into_view_if_needed()
    picture = Path(os.environ.get("RQLIB_SCREENSHOTS", folder)) / f"{notebook}.png"
    page.screenshot(path=picture)
    assert picture.stat().st_size > 10_000


def _move(page, kind: str, index: int, choice: str | None, after: str):
    """Move a control; the title that the figure has afterwards, and not before, and when it was moved."""
    notebook = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
    control = notebook.locator(".noUi-handle" if kind == "slider" else ".widget-dropdown select").nth(index)
    control.scroll_into_view_if_needed()
    title = notebook.locator(".gtitle", has_text=after).first
    assert not title.count()
    moved = time.monotonic()
    if kind == "slider":
        control.focus()
        page.keyboard.press("ArrowRight")
    else:
        control.select_option(choice)
    return title, moved
