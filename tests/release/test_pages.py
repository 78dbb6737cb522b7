"""Every page of the documentation site in a real browser, on a wide and on a narrow screen."""

import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.helpers.browser import wait

pytestmark = pytest.mark.release
PAGES = re.findall(r": (\w+)\.md$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
WIDTHS = 1280, 390  # pixels: a laptop and a telephone
LOADED = "return document.readyState == 'complete'"
BROKEN_IMAGES = """
return [...document.images].filter(image => !image.complete || !image.naturalWidth)
    .map(image => image.getAttribute('src'));
"""
# A box inside an ancestor that scrolls or clips does not widen the page.
TOO_WIDE = """
const width = document.documentElement.clientWidth;
const contained = node => {
  for (let box = node.parentElement; box; box = box.parentElement)
    if (getComputedStyle(box).overflowX != 'visible' && box != document.body
        && box != document.documentElement) return true;
  return false;
};
return [...document.querySelectorAll('.md-content *, .md-header *')]
    .filter(node => node.getClientRects().length && !contained(node))
    .filter(node => node.getBoundingClientRect().right > width + 1)
    .map(node => `${node.tagName} ${(node.textContent || '').trim().slice(0, 60)}`);
"""
BROKEN_FLAGS = """
return [...document.querySelectorAll('code .flag')].filter(flag => flag.getClientRects().length > 1)
    .map(flag => flag.textContent);
"""
SCROLL_WIDTH = "return document.documentElement.scrollWidth"
RESULTS = """
return [...document.querySelectorAll('.md-search-result__link')].map(link => link.href);
"""


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments) -> None:
        """Writes no line for a request."""


@pytest.fixture(scope="module")
def address(site: Path):
    """The address of a local server of the site."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def show(browser, url: str, width: int) -> None:
    """Loads a page on a screen of a width; a window itself cannot be as narrow as a telephone."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    errors(browser)  # drops those of earlier pages
    browser.get(url)
    wait(browser, LOADED)


def errors(browser) -> list[str]:
    """The messages of the console since the last call that say more than a notice."""
    entries = browser.get_log("browser")
    return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]


def test_every_page_is_in_the_navigation(site: Path) -> None:
    assert len(PAGES) > 15
    assert {path.stem for path in site.glob("*.html")} - {"404"} == set(PAGES)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("page", PAGES)
def test_a_page_loads_whole_and_fits_the_screen(browser, address, page: str, width: int) -> None:
    show(browser, f"{address}/{page}.html", width)
    assert not browser.execute_script(BROKEN_IMAGES)
    assert not browser.execute_script(TOO_WIDE)
    assert not browser.execute_script(BROKEN_FLAGS)
    assert browser.execute_script(SCROLL_WIDTH) <= width
    assert not errors(browser)


def test_the_checks_find_what_is_wrong(browser, address) -> None:
    show(browser, f"{address}/getting_started.html", 390)
    browser.execute_script(
        """
        document.querySelector('.md-content').insertAdjacentHTML('beforeend',
            '<img src="nowhere.png"><div style="width: 900px">wide</div>');
        const flag = document.querySelector('code .flag');
        flag.style = 'white-space: normal; display: inline; word-spacing: 999px';
        flag.textContent = '--in two';
        console.error('said on purpose');
        """
    )
    assert browser.execute_script(BROKEN_IMAGES) == ["nowhere.png"]
    assert "DIV wide" in browser.execute_script(TOO_WIDE)
    assert browser.execute_script(BROKEN_FLAGS) == ["--in two"]
    assert any("said on purpose" in message for message in errors(browser))


def test_search_finds_a_page(browser, address) -> None:
    show(browser, f"{address}/index.html", WIDTHS[0])
    field = browser.find_element("css selector", "input.md-search__input")
    field.click()
    field.send_keys("mean shift")
    links = wait(browser, RESULTS)
    assert any("concepts.html" in link or "proposals.html" in link for link in links)
    browser.get(links[0])
    wait(browser, LOADED)
    assert "mean" in browser.find_element("tag name", "main").text.lower()
    assert not errors(browser)
