"""Real runs with hostile values in every key: they run, or end with one line."""

import random
import signal
from contextlib import contextmanager
from functools import partial
from typing import Iterator, List

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from rpe_d2.cli.train_net import main
from rpe_d2.config import all_keys
from rpe_d2.data import load_shapes, load_shapes_sem_seg
from tests.conftest import ROOT
from tests.helpers.boundary_tree import make_tree
from tests.helpers.runs import overrides

SMALL = overrides(
    """
    MODEL:
      DEVICE: cpu
      RPE: {CONV_DIM: 64, TRAIN_POINTS: 64, MAX_GROUPS: 10}
      RPN: {POST_NMS_TOPK_TRAIN: 20, POST_NMS_TOPK_TEST: 5}
      VGG: {WIDTH: 0.125, FC_DIM: 32}
    SOLVER: {MAX_ITER: 1, IMS_PER_BATCH: 2}
    DATALOADER: {NUM_WORKERS: 0}
    INPUT: {MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64}
    TEST: {DETECTIONS_PER_IMAGE: 5}
    """
)
INSTANCES = ["DATASETS.TRAIN", "('fuzz_shapes',)", "DATASETS.TEST", "('fuzz_shapes',)"]
SEMANTIC = ["DATASETS.TRAIN", "('fuzz_sem_seg',)", "DATASETS.TEST", "('fuzz_sem_seg',)"]
DILATED = overrides(
    """
    MODEL:
      BACKBONE: {NAME: build_dilated_resnet_backbone}
      RPE: {IN_FEATURES: [res3, res5], STRIDE: 8}
    """
)
TIMM = overrides(
    """
    MODEL:
      BACKBONE: {NAME: build_timm_fpn_backbone}
      TIMM: {NAME: resnet18, NORM: BN}
    """
)
TRANSFORMER = overrides(
    """
    MODEL:
      BACKBONE: {NAME: build_spatial_transformer_backbone}
      SPATIAL_TRANSFORMER: {NAME: build_short_resnet_fpn_backbone}
      RPE: {IN_FEATURES: [p2, p3, p4, p5]}
    """
)
# The configuration that uses a node, and its data. A node without an entry uses that of its parent.
USERS = {
    "": ["quick/rpe_instant_test.yaml", *INSTANCES],
    "TEST.DENSE_CRF": ["semantic/embedding_shapes.yaml", *SEMANTIC],
    "TEST.SUPERPIXELS": [
        *("semantic/embedding_shapes.yaml", *SEMANTIC),
        *("TEST.SUPERPIXELS.ENABLED", "True"),
    ],
    "MODEL.RPE.PROPOSALS": ["proposals/rpe_shapes.yaml", *INSTANCES],
    "MODEL.PROPOSAL_GENERATOR": ["proposals/mask_rcnn_rpe_shapes.yaml", *INSTANCES],
    "MODEL.RESNETS": ["quick/rpe_instant_test.yaml", *INSTANCES, *DILATED],
    "MODEL.TIMM": ["quick/rpe_instant_test.yaml", *INSTANCES, *TIMM],
    "MODEL.SPATIAL_TRANSFORMER": ["quick/rpe_instant_test.yaml", *INSTANCES, *TRANSFORMER],
    "MODEL.GUIDED_BACKBONE": ["baselines/deepmask_shapes.yaml", *INSTANCES],
    "MODEL.SPN": ["spn/mask_rcnn_spn_shapes.yaml", *INSTANCES],
    "MODEL.ROI_MASK_HEAD": ["spn/mask_rcnn_spn_shapes.yaml", *INSTANCES],
    "MODEL.SEM_SEG_HEAD": ["semantic/recurrent_shapes.yaml", *SEMANTIC],
    "MODEL.BOUNDARY": ["boundary/bsds_R_18.yaml", "TEST.BOUNDARY_THRESHOLDS", 3],
    "MODEL.VGG": ["semantic/fcn_8s_vgg16_shapes.yaml", *SEMANTIC],
    "MODEL.MNC": ["baselines/mnc_shapes.yaml", *INSTANCES],
    "MODEL.FCIS": ["baselines/fcis_shapes.yaml", *INSTANCES],
    "MODEL.DEEPMASK": ["baselines/deepmask_shapes.yaml", *INSTANCES],
    "MODEL.INSTANCE_FCN": ["baselines/instance_fcn_shapes.yaml", *INSTANCES],
    "MODEL.HYPERCOLUMN": ["baselines/hypercolumn_shapes.yaml", *INSTANCES],
}
VALUES = [
    "nan", "-inf", "-1", "0", "1", "3", "2.5", "1e-9", "-0.5", "1000", "text", "''", "[]", "[0]",
    "[1.0]", "['text']", "None", "True", "False", "{'a': 1}",
]  # fmt: skip
TRIES = 4  # per key, besides all its choices and its bounds
SECONDS = 120
KEYS = [(node, name) for node, keys in all_keys().items() for name in sorted(keys)]


@pytest.fixture(scope="module", autouse=True)
def small_datasets():
    loaders = {"fuzz_shapes": load_shapes, "fuzz_sem_seg": load_shapes_sem_seg}
    for name, load in loaders.items():
        DatasetCatalog.register(name, partial(lambda load: load("train")[:2], load))
        like = MetadataCatalog.get(name.replace("fuzz_shapes", "shapes_train").replace(
            "fuzz_sem_seg", "shapes_train_sem_seg"
        )).as_dict()  # fmt: skip
        MetadataCatalog.get(name).set(**{k: v for k, v in like.items() if k != "name"})
    yield
    for name in loaders:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)


@pytest.fixture(scope="module")
def boundary_tree(tmp_path_factory) -> str:
    return make_tree(tmp_path_factory.mktemp("boundaries"))


@contextmanager
def time_limit() -> Iterator[None]:
    def stop(*_):
        raise TimeoutError(f"the run takes more than {SECONDS} seconds")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def values_of(node: str, name: str) -> List[str]:
    """Returns values that a user may type, allowed and not: the same in every run."""
    key = all_keys()[node][name]
    values = random.Random(f"{node}.{name}").sample(VALUES, TRIES)
    # Upper bounds are far beyond the memory of a machine that tests.
    edges = [*key.choices, key.low, key.above]
    return [*values, *(str(edge) for edge in edges if edge is not None)]


@pytest.mark.slow
@pytest.mark.parametrize("node, name", KEYS, ids=[f"{n}.{k}" for n, k in KEYS])
def test_a_run_works_or_ends_with_one_line(node, name, boundary_tree, tmp_path, capfd):
    user = node
    while user not in USERS:
        user = user.rpartition(".")[0]
    config, *options = USERS[user]
    if user == "MODEL.BOUNDARY":
        options += ["DATASETS.BSDS", boundary_tree]
    full_name = f"{node}.{name}".lstrip(".")
    for number, value in enumerate(values_of(node, name)):
        arguments = [
            "--config-file", ROOT / "configs" / config, *SMALL, *options,
            "OUTPUT_DIR", tmp_path / str(number), full_name, value,
        ]  # fmt: skip
        try:
            with time_limit():
                assert main(list(map(str, arguments))) == 0
        except SystemExit as stop:
            error = capfd.readouterr().err
            assert stop.code == 2 and "Traceback" not in error, (value, error)
            line = error.strip().splitlines()[-1]
            assert line.startswith("error: ") and name in line, (value, line)
            words = ("allowed", "needs", "set ", "no such", "has no ", "nearest")
            assert any(word in line for word in words), (value, line)
        except BaseException as error:
            raise AssertionError(f"{full_name} {value}") from error
        capfd.readouterr()
