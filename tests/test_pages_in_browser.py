"""The report and the explorer in a real browser: ``make browser-test``.

It needs the packages of requirements-browser.lock, a Chromium (docs/report.md), and the profile ci with its report.
"""

import http.server
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from functools import partial

import pytest

from layerswap.files import BUILD, ROOT

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make browser-test")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed: make browser-test")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
REPORT = BUILD / "ci" / "report"
pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium is on this machine (docs/report.md says how to install it)"),
    pytest.mark.skipif(not REPORT.is_dir(), reason="build/ci/report is not there: make browser-test"),
]
SCREENSHOTS = BUILD / "screenshots"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
SLOWEST_ANSWER = 10.0  # seconds until a test gives up waiting for an answer; how long it took is printed
PAGES = sorted(path.name for path in REPORT.glob("*.html")) if REPORT.is_dir() else []


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def report_url():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(REPORT)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def open_page(browser, url, **options):
    """A page, and lists of its console's errors and of its requests to other hosts."""
    page = browser.new_page(**options)
    errors, foreign = [], []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    host = re.match(r"https?://[^/]+", url)[0]

    def note(request):
        if not request.url.startswith((host, host.replace("http", "ws"), "data:", "blob:")):
            foreign.append(request.url)

    page.on("request", note)
    page.goto(url)
    return page, errors, foreign


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_is_whole_and_accessible(browser, report_url, name, scheme):
    page, errors, foreign = open_page(browser, f"{report_url}/{name}", color_scheme=scheme)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name.removesuffix('.html')}-{scheme}.png", full_page=True)
    violations = [f"{violation['id']}: {violation['nodes'][0]['html'][:120]}"
                  for violation in axe.Axe().run(page).response["violations"]
                  if violation["impact"] in ("serious", "critical")]  # fmt: skip
    assert not errors and not foreign and not violations, (errors, foreign, violations)
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth && image.alt)")
    page.close()


@pytest.mark.parametrize("name", PAGES)
def test_all_links_lead_somewhere(browser, report_url, name):
    page, _, _ = open_page(browser, f"{report_url}/{name}")
    links = page.evaluate("[...document.querySelectorAll('a[href]')].map(link => link.href)")
    page.close()
    targets = {}
    for link in {*links} - {""}:
        if not link.startswith(report_url):
            assert link.startswith("https://"), link  # the papers
            continue
        url, _, anchor = link.partition("#")
        text = targets.setdefault(url, urllib.request.urlopen(url).read())
        assert not anchor or f'id="{anchor}"'.encode() in text, link


def test_a_page_fits_a_phone(browser, report_url):
    for name in PAGES:
        page, _, _ = open_page(browser, f"{report_url}/{name}", viewport={"width": 390, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        page.screenshot(path=SCREENSHOTS / f"{name.removesuffix('.html')}-phone.png")
        page.close()


def test_a_report_is_small():
    assert sum(path.stat().st_size for path in REPORT.rglob("*") if path.is_file()) <= 25e6


def test_a_table_is_sorted_by_a_click(browser, report_url):
    page, _, _ = open_page(browser, f"{report_url}/index.html")
    table = page.locator("main table").first
    table.get_by_role("button", name="difference").click()
    column = [float(text.split()[0]) for text in table.locator("tbody tr td:nth-child(2)").all_inner_texts()]
    assert column == sorted(column) and len(column) > 3
    table.get_by_role("button", name="difference").click()
    column = [float(text.split()[0]) for text in table.locator("tbody tr td:nth-child(2)").all_inner_texts()]
    assert column == sorted(column, reverse=True)
    page.close()


def test_the_problem_browser_filters(browser, report_url):
    page, errors, _ = open_page(browser, f"{report_url}/05_mgsm.html")
    problems = page.locator(".problem-browser")

    def n_problems():
        return int(problems.get_by_role("status").inner_text().split()[0])

    problems.locator("[name=outcome]").select_option("any")
    n_all = n_problems()
    problems.locator("[name=outcome]").select_option("right")
    n_right = n_problems()
    problems.locator("[name=outcome]").select_option("wrong")
    assert n_problems() + n_right == n_all == 20
    problems.locator("[name=outcome]").select_option("any")
    problems.locator("summary").first.click()
    answers = problems.locator("details[open] tbody tr")
    assert answers.count() == problems.locator("[name=method] option").count() > 5
    assert problems.locator("mark").count() > 0  # words that the base never met
    page.screenshot(path=SCREENSHOTS / "problem-browser.png")
    assert not errors
    page.close()


# --- JupyterLab -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab_url(tmp_path_factory):
    """JupyterLab as ``make lab`` starts it, with a configuration of its own; its address and its token."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("jupyter")
    settings = {"ServerApp": {"port": port, "open_browser": False}, "IdentityProvider": {"token": "secret"}}
    (folder / "jupyter_server_config.json").write_text(json.dumps(settings))
    environment = os.environ | {"JUPYTER_CONFIG_DIR": str(folder), "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
                                "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"), "PYTHONPATH": str(ROOT),
                                "JUPYTER_PREFER_ENV_PATH": "1", "OMP_NUM_THREADS": "1"}  # fmt: skip
    command = ["make", "lab", f"PY={sys.executable}", "READY="]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
    for _ in range(120):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api").read()
            break
        except OSError:
            time.sleep(0.5)
    yield f"http://127.0.0.1:{port}", "?token=secret"
    os.killpg(process.pid, signal.SIGTERM)  # make, and the server below it
    process.wait()


def test_the_start_page_links_what_is_there(browser, lab_url):
    url, token = lab_url
    page, errors, foreign = open_page(browser, f"{url}/{token}", viewport={"width": 1400, "height": 1000})
    text = page.locator(".jp-RenderedMarkdown").first
    text.get_by_role("heading", name="Profile ci").wait_for(timeout=60_000)
    page.locator(".jp-BreadCrumbs-home").wait_for()
    page.screenshot(path=SCREENSHOTS / "start.png")
    assert page.locator(".jp-DirListing-itemText", has_text="notebooks").count() == 1, "the project's root is listed"
    assert page.get_by_text("news").count() == 0
    links = [link.get_attribute("href") for link in text.get_by_role("link").all()]
    for link in {link for link in links if not link.startswith("#")}:  # JupyterLab leads its own to /files
        with urllib.request.urlopen(link if "://" in link else f"{url}{link}{token}") as answer:
            assert answer.status == 200, link
    with page.context.expect_page() as opened:
        text.get_by_role("link", name="Report").last.click()
    opened.value.get_by_role("heading", name="Findings").wait_for()
    assert not foreign and not errors, (foreign, errors)
    opened.value.close()
    page.close()


def test_the_sliders_of_the_explorer_change_its_answers(browser, lab_url, tmp_path):
    url, token = lab_url
    notebook = ROOT / "notebooks" / "explorer in a browser.ipynb"  # a copy: JupyterLab saves what was run
    source = (ROOT / "notebooks" / "08_explore.ipynb").read_text(encoding="utf-8")
    assert (text := source.replace('profile = \\"draft\\"', 'profile = \\"ci\\"')) != source
    notebook.write_text(text, encoding="utf-8")
    try:
        page, errors, foreign = open_page(browser, f"{url}/lab/tree/notebooks/{notebook.name}{token}",
                                          viewport={"width": 1500, "height": 1200})  # fmt: skip
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).click()
        sliders = page.get_by_role("slider")
        sliders.first.wait_for(timeout=60_000)
        page.get_by_text("exact match").first.wait_for(timeout=60_000)
        picture = page.get_by_role("img", name="layers: ")
        seconds = []
        for key in ["ArrowLeft", "ArrowLeft", "ArrowLeft", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowRight"]:
            before = picture.first.get_attribute("aria-label")
            started = time.monotonic()
            sliders.first.focus()
            page.keyboard.press(key)
            sync_api.expect(picture.first).not_to_have_attribute("aria-label", before, timeout=1000 * SLOWEST_ANSWER)
            page.wait_for_function("() => true")
            seconds.append(time.monotonic() - started)
        print(f"\nslider to answer: median {statistics.median(seconds):.2f} s of {len(seconds)}")
        page.get_by_role("combobox", name="problem").first.select_option("5")
        question = page.locator("p > b").first
        sync_api.expect(question).not_to_have_text("", timeout=1000 * SLOWEST_ANSWER)
        page.get_by_role("button", name="score").click()
        page.get_by_text("95 % interval").first.wait_for(timeout=30_000)
        page.get_by_role("button", name="write the plan").click()
        page.get_by_text("layerswap merge --math").first.wait_for(timeout=10_000)
        page.screenshot(path=SCREENSHOTS / "explorer.png")
        assert page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
        assert not foreign and not errors, (foreign, errors)
        page.close()
    finally:
        notebook.unlink()
