"""The page of rpe-d2 serve in a real browser."""

import json
import os
import signal
import socket
import subprocess
import sys

import cv2
import numpy as np
import pytest

from rpe_d2.cli.serve import main
from rpe_d2.engine.setup import read_config
from rpe_d2.inference import Segmenter
from tests.conftest import ROOT
from tests.helpers.browser import wait
from tests.helpers.environment import required
from tests.helpers.runs import CONFIG, TINY, save_random

pytestmark = pytest.mark.release
SUMMARY = "return document.getElementById('summary')?.innerText.includes('object')"
NAMES = "return [...document.querySelectorAll('#files a')].map(link => link.download)"
MESSAGE = "return document.querySelector('.toast-body')?.innerText"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a model, as a training leaves it."""
    folder = tmp_path_factory.mktemp("model")
    save_random(CONFIG, TINY, folder / "model_final.pth")
    (folder / "config.yaml").write_text(read_config(CONFIG, TINY).dump())
    return folder


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    required("gradio", "-e '.[dev]'")
    command = [sys.executable, "tools/serve.py", "--model", str(model), "--port", "0"]
    command += ["--min-score", "0", "--max-mb", "1"]
    folder = tmp_path_factory.mktemp("temporary")
    # A proxy is not asked for this machine's own page.
    environment = {**os.environ, "TMPDIR": str(folder), "HTTP_PROXY": "http://127.0.0.1:9"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    process.folder = folder
    yield process
    process.kill()
    process.wait()


def test_an_upload_is_segmented(server, model, browser, tmp_path):
    image = np.random.default_rng(0).integers(0, 99, (48, 64, 3), dtype=np.uint8)
    image[10:30, 10:40] += 100
    cv2.imwrite(str(tmp_path / "cells.png"), image)
    found = Segmenter.load(model, min_score=0.0).predict(tmp_path / "cells.png")

    url = server.stdout.readline().split()[0]
    assert url.startswith("http://127.0.0.1:")
    browser.get_log("performance")
    browser.get(url)
    wait(browser, "return document.querySelector('#upload input[type=file]')")
    send(browser, tmp_path / "cells.png")
    wait(browser, SUMMARY, 60)
    text = browser.execute_script("return document.getElementById('summary').innerText")
    assert text.startswith(f"{len(found)} object")
    names = wait(browser, f"{NAMES}.length == 3 && ({NAMES.removeprefix('return ')})")
    assert names == ["cells.tif", "cells.geojson", "cells.csv"]
    # The browser has asked nobody but this server.
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert urls and all(u.startswith((url, "data:", "blob:")) for u in urls), urls

    (tmp_path / "broken.png").write_bytes(b"no image")
    browser.get(url)
    wait(browser, "return document.querySelector('#upload input[type=file]')")
    send(browser, tmp_path / "broken.png")
    assert "broken.png" in wait(browser, MESSAGE, 60)

    (tmp_path / "large.png").write_bytes(bytes(2**21))
    browser.get(url)
    wait(browser, "return document.querySelector('#upload input[type=file]')")
    send(browser, tmp_path / "large.png")
    assert "size" in wait(browser, MESSAGE, 60)


def send(browser, path):
    browser.find_element("css selector", "#upload input[type=file]").send_keys(str(path))


def test_a_signal_ends_it_and_nothing_remains(server):
    assert list(server.folder.rglob("cells.*"))
    server.send_signal(signal.SIGHUP)
    assert server.wait(30) == 0
    assert [path for path in server.folder.rglob("*") if path.is_file()] == []


def test_an_address_of_ipv6(model):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    command = [sys.executable, "tools/serve.py", "--model", str(model), "--port", "0"]
    command += ["--host", "::1"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().startswith("http://[::1]:")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_a_port_that_is_taken(model, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with pytest.raises(SystemExit) as stop:
            main(["--model", str(model), "--port", port])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: --host 127.0.0.1 --port {port} cannot be")
