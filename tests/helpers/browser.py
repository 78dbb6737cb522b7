"""A real browser without a window, driven by Selenium."""

import shutil
from pathlib import Path

import pytest

from tests.helpers.environment import chromium, required

FLAGS = """
--headless --no-sandbox --disable-gpu --disable-quic --no-first-run
--disable-background-networking --disable-component-update --disable-sync
"""


def open_browser(profile: Path):
    """Returns a Chromium with a new profile; the test is skipped where there is none."""
    required("selenium", "-e '.[dev]'")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium()
    driver = shutil.which("chromedriver")
    if driver is None:
        pytest.skip("no chromedriver here: apt install chromium-driver")
    for flag in [*FLAGS.split(), f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # A driver that is named keeps Selenium from searching the network for one.
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


def wait(browser, script: str, seconds: float = 20):
    """Returns what a script returns in the page as soon as that is true."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, seconds, 0.05).until(lambda page: page.execute_script(script))
