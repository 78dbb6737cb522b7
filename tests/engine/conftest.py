"""Runs in the tests' own process leave no trace in the next one's."""

import logging

import pytest
from detectron2.utils.logger import setup_logger


@pytest.fixture(autouse=True)
def fresh_loggers():
    """Detectron2's loggers hold on to the streams of the run that set them up."""
    yield
    for name in ("detectron2", "fvcore", "rpe_d2"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    setup_logger.cache_clear()
