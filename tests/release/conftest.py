"""The documentation site and a browser, made once for all release tests of a process."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.helpers.browser import open_browser
from tests.helpers.environment import required


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The folder of the site, which has to build without a warning."""
    for name in ("mkdocs", "material", "mkdocstrings"):
        required(name, "-e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    # The theme announces its end of life on every build.
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    build = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    log = build.stdout.decode()
    assert build.returncode == 0 and "WARNING" not in log, log
    return folder


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A Chromium without a window."""
    window = open_browser(tmp_path_factory.mktemp("profile"))
    yield window
    window.quit()
