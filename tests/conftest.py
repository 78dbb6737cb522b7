"""What all tests share: where real data lies; no test leaves loggers or checkpoints behind."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from detectron2.utils.logger import setup_logger

ROOT = Path(__file__).resolve().parents[1]
DATA_VARIABLE = "RPE_D2_TEST_DATA"


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Finds a folder of real data: ``real_data("nuclei") -> Path``.

    The folder lies in ``$RPE_D2_TEST_DATA`` or, without that variable, in ``../shared/data`` beside
    the clone. If it is absent, the test is skipped. If the variable names it, the test fails.
    """

    def find(name: str) -> Path:
        promised = os.environ.get(DATA_VARIABLE)
        folder = Path(promised or ROOT.parent / "shared" / "data") / name
        if not folder.is_dir():
            if promised:
                pytest.fail(f"{DATA_VARIABLE} is {promised}, where there is no folder {name}")
            pytest.skip(f"no real data: {folder} is absent and {DATA_VARIABLE} is not set")
        return folder

    return find


@pytest.fixture(autouse=True, scope="module")
def no_checkpoints_left(tmp_path_factory):
    """Deletes the checkpoints of a test file after its last test: together they fill a disk.

    Everything else stays, because Detectron2's catalog names files in these folders to later tests.
    """
    yield
    for checkpoint in tmp_path_factory.getbasetemp().rglob("*.pth"):
        if not checkpoint.is_symlink() and checkpoint.is_file():
            checkpoint.unlink()


@pytest.fixture(autouse=True)
def fresh_loggers():
    """Detectron2's loggers hold on to the streams of the run that set them up."""
    yield
    for name in ("detectron2", "fvcore", "rpe_d2"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    setup_logger.cache_clear()
