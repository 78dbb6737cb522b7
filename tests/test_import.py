"""What `import rpe_d2` loads, and how long it takes."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT

# What single commands, evaluators or operators need. Each imports it where it uses it.
HEAVY = {
    "matplotlib",
    "pandas",
    "pydensecrf",
    "scipy",
    "skimage",
    "sklearn",
    "tensorboard",
    "wandb",
}
ROOMS = {"rpe_d2.cli", "rpe_d2.engine", "rpe_d2.inference", "rpe_d2.visualization"}
MEASURE = """
import json, sys, time
import torch
def seconds(name):
    start = time.process_time()
    __import__(name)
    return time.process_time() - start
host = seconds("detectron2.modeling")
before = set(sys.modules)
own = seconds("rpe_d2")
print(json.dumps([host, own, sorted(set(sys.modules) - before)]))
"""


def measured() -> tuple[float, float, set[str]]:
    """CPU seconds of detectron2.modeling and then of rpe_d2, and the modules that rpe_d2 adds."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURE], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    host, own, added = json.loads(done.stdout.splitlines()[-1])
    return host, own, set(added)


def test_the_import_loads_only_what_building_a_model_needs():
    *_, added = measured()
    assert {"rpe_d2.config", "rpe_d2.modeling", "rpe_d2.baselines"} <= added
    assert not ROOMS & added
    assert not HEAVY & {name.split(".")[0] for name in added}


def test_the_import_takes_less_than_half_as_long_as_detectron2s():
    """Without torch, which both need; the best of three, because the machine may be busy."""
    assert min(own / host for host, own, _ in (measured() for _ in range(3))) < 0.5


WITHOUT_DETECTRON2 = """
import importlib, pkgutil, sys
sys.modules["detectron2"] = sys.modules["cv2"] = sys.modules["fvcore"] = None
import torch
import rpe_d2, rpe_d2.ops
for module in pkgutil.iter_modules(rpe_d2.ops.__path__):
    if module.name != "propagation_triton":  # needs Triton
        importlib.import_module(f"rpe_d2.ops.{module.name}")
from rpe_d2.ops.propagation import normalize_gates, spatial_propagation
from rpe_d2.ops.mean_shift import mean_shift
x, gates = torch.rand(1, 2, 6, 7), normalize_gates(torch.randn(1, 1, 12, 6, 7))
assert spatial_propagation(x, gates).shape == x.shape
assert mean_shift(torch.eye(3), 0.5, 2).shape == (3, 3)
assert not any(name.startswith("detectron2.") for name in sys.modules)
try:
    rpe_d2.get_cfg
except ImportError as error:
    print(error)
"""


REFINE_WITHOUT_DETECTRON2 = """
import sys
sys.modules["detectron2"] = sys.modules["fvcore"] = None
import numpy as np
import rpe_d2
labels = np.zeros((64, 64), np.uint8)
labels[20:40, 22:44] = 7
image = np.where(labels > 0, 200, 50).astype(np.uint8)
result, confidence, report = rpe_d2.refine(image, labels)
assert not any(name.startswith("detectron2.") for name in sys.modules)
print(np.unique(result).tolist(), report["pixels"])
"""


@pytest.mark.parametrize(
    "code, printed",
    [
        (WITHOUT_DETECTRON2, "rpe_d2.get_cfg needs Detectron2, which is not installed: see"),
        (REFINE_WITHOUT_DETECTRON2, "[0, 7] 4096"),
    ],
    ids=["operators", "refine"],
)
def test_what_works_without_detectron2(code, printed):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(printed)
