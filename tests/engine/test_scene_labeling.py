"""Real runs of the scene labeling configurations on a few generated images."""

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from rpe_d2.cli.train_net import main
from rpe_d2.engine.setup import load_config
from rpe_d2.engine.trainer import Trainer
from rpe_d2.evaluation import RefinedScoresEvaluator, SuperpixelVote
from tests.conftest import ROOT
from tests.helpers.runs import overrides


@pytest.fixture
def stanford(tmp_path):
    """Overrides that name four images of 60 x 44 pixels in the form of Stanford Background."""
    rng = np.random.default_rng(0)
    entries = []
    before = set(DatasetCatalog.list())
    for part in ("train", "test"):
        for kind in ("images", "labels"):
            (tmp_path / kind / part).mkdir(parents=True)
        for number in range(2):
            labels = rng.integers(0, 8, (4, 5)).repeat(11, axis=0).repeat(12, axis=1)
            picture = labels[..., None] * 30 + rng.integers(0, 20, (*labels.shape, 3))
            labels[0, :9] = 255
            for kind, pixels in (("images", picture), ("labels", labels)):
                path = tmp_path / kind / part / f"{number}.png"
                Image.fromarray(pixels.astype(np.uint8)).save(path)
        entries.append(f"stanford_{part}={tmp_path}/images/{part}:{tmp_path}/labels/{part}")
    yield ["DATASETS.SEM_SEG_DIRS", json.dumps(entries)]
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


SMALL = overrides(
    """
    MODEL: {DEVICE: cpu}
    DATALOADER: {NUM_WORKERS: 0}
    SOLVER: {MAX_ITER: 2, IMS_PER_BATCH: 2}
    """
)


def run(config, folder, *opts):
    path = str(ROOT / "configs" / f"{config}.yaml")
    arguments = ["--config-file", path, *SMALL, "OUTPUT_DIR", folder, *opts]
    assert main([str(argument) for argument in arguments]) == 0
    return json.loads((folder / "result.json").read_text())["metrics"]["sem_seg"]


@pytest.mark.parametrize(
    "config, options",
    [
        (
            "paper/multi_scale_stanford",
            "MODEL: {SEM_SEG_HEAD: {CLASS_BALANCE: 1.0}}\nTEST: {SUPERPIXELS: {ENABLED: True}}",
        ),
        ("paper/rcnn2_stanford", "{}"),
        ("semantic/embedding_stanford_efficientnet_lite0", "INPUT: {CROP: {SIZE: [32, 32]}}"),
    ],
    ids=["multi_scale", "rcnn2", "efficientnet"],
)
def test_two_iterations(config, options, stanford, tmp_path):
    metrics = run(config, tmp_path / "out", *stanford, *overrides(options))
    assert {"pACC", "mACC", "mIoU"} <= set(metrics) and metrics["pACC"] >= 0


def test_settings_reach_the_vote_of_superpixels():
    path = str(ROOT / "configs" / "paper" / "multi_scale_stanford.yaml")
    cfg = load_config(path, ["TEST.SUPERPIXELS.ENABLED", "True", "TEST.SUPERPIXELS.SCALE", "9.0"])
    evaluator = Trainer.build_evaluator(cfg, "shapes_val_sem_seg")
    assert isinstance(evaluator, RefinedScoresEvaluator)
    assert evaluator.image_format == "YUV-BT.601"
    vote = evaluator.refine
    assert isinstance(vote, SuperpixelVote)
    assert (vote.scale, vote.sigma, vote.min_size) == (9.0, 0.8, 50)


@pytest.mark.parametrize(
    "options, message",
    [
        (
            "TEST: {SUPERPIXELS: {ENABLED: True}, DENSE_CRF: {ENABLED: True}}",
            "TEST.DENSE_CRF.ENABLED and TEST.SUPERPIXELS.ENABLED are True; allowed: one of them",
        ),
        (
            "MODEL: {SEM_SEG_HEAD: {NAME: SemSegFPNHead, CLASS_BALANCE: 0.5}}",
            "MODEL.SEM_SEG_HEAD.CLASS_BALANCE is 0.5; SemSegFPNHead has no class balance, allowed: "
            "0, or a head that has it, DeconvNetHead",
        ),
        (
            "DATASETS: {TRAIN: [shapes_train]}\nINPUT: {OBJECT_CROP: 1.2}",
            "shapes_train has no semantic maps",
        ),
    ],
    ids=["refinements", "balance", "crops"],
)
def test_settings_that_do_not_fit_are_reported_in_one_line(
    options, message, stanford, tmp_path, capsys
):
    if "DENSE_CRF" in options:
        pytest.importorskip("pydensecrf")
    with pytest.raises(SystemExit, match="2"):
        run("paper/rcnn2_stanford", tmp_path / "out", *stanford, *overrides(options))
    assert message in capsys.readouterr().err
