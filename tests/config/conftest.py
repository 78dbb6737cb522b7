"""The two ways in which a configuration file is loaded."""

import pytest
from detectron2.config import CfgNode

from rpe_d2.engine.setup import read_config
from tests.helpers.keys import new_cfg


@pytest.fixture(params=["a plain script", "read_config"])
def load(request):
    """Loads a file in a plain Detectron2 script, or as the command line does."""

    def plain(path) -> CfgNode:
        cfg = new_cfg()
        cfg.merge_from_file(str(path))
        return cfg

    return plain if request.param == "a plain script" else lambda path: read_config(str(path), [])
