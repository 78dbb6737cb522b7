"""The LazyConfig examples train with the loop of Detectron2's lazyconfig_train_net.py."""

import math

import pytest
import torch
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import SimpleTrainer, default_setup, hooks
from detectron2.engine.defaults import create_ddp_model
from detectron2.modeling import build_model

from rpe_d2 import add_rpe_config
from rpe_d2.modeling import MeanShiftProposalGenerator, SPNMaskHead
from tests.conftest import ROOT
from tests.helpers.environment import required

required("pkg_resources", "'setuptools<82'")  # detectron2.model_zoo imports it
FOLDER = ROOT / "configs" / "lazy"
DATA = "lazy_shapes"


@pytest.fixture
def four_shapes():
    DatasetCatalog.register(DATA, lambda: DatasetCatalog.get("shapes_train")[:4])
    MetadataCatalog.get(DATA).thing_classes = MetadataCatalog.get("shapes_train").thing_classes
    yield
    DatasetCatalog.remove(DATA)
    MetadataCatalog.remove(DATA)


def small(cfg):
    """Replaces the data by a few small images."""
    cfg.dataloader.train.dataset.names = DATA
    cfg.dataloader.train.total_batch_size = 2
    cfg.dataloader.train.num_workers = 0
    cfg.dataloader.train.mapper.augmentations[0].short_edge_length = [128]
    cfg.train.device = "cpu"
    cfg.train.max_iter = 1
    return cfg


def train(cfg):
    """Does what do_train of Detectron2's tools/lazyconfig_train_net.py does, without writers."""
    model = instantiate(cfg.model).to(cfg.train.device).train()
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    loader = instantiate(cfg.dataloader.train)
    trainer = SimpleTrainer(create_ddp_model(model, **cfg.train.ddp), loader, optimizer)
    scheduler = hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier))
    trainer.register_hooks([hooks.IterationTimer(), scheduler])
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    trainer.train(0, cfg.train.max_iter)
    losses = {
        name: values.latest()
        for name, values in trainer.storage.histories().items()
        if name.startswith("loss")
    }
    moved = [n for n, value in model.named_parameters() if not torch.equal(value, before[n])]
    return model, losses, moved


def test_pixel_embeddings_train_one_step(four_shapes, tmp_path):
    cfg = small(LazyConfig.load(str(FOLDER / "rpe_coco.py")))
    cfg.model.embedding_head.num_classes = 4
    cfg.train.output_dir = str(tmp_path)
    default_setup(cfg, LazyArguments(FOLDER / "rpe_coco.py"))
    model, losses, moved = train(cfg)
    names = {"loss_pair", "loss_vote", "loss_sem_seg", "loss_quality", "loss_group"}
    assert set(losses) == names
    assert all(math.isfinite(loss) for loss in losses.values())
    assert any(name.startswith("embedding_head.") for name in moved)


def test_it_is_the_model_of_the_yaml_file():
    """Same parameters, under the same names and of the same shapes."""
    yaml = get_cfg()
    add_rpe_config(yaml)
    yaml.merge_from_file(str(ROOT / "configs" / "rpe_coco.yaml"))
    yaml.MODEL.DEVICE = "cpu"
    expected = build_model(yaml)
    model = instantiate(LazyConfig.load(str(FOLDER / "rpe_coco.py")).model)
    shapes, expected_shapes = (
        {name: value.shape for name, value in m.state_dict().items()} for m in (model, expected)
    )
    assert shapes == expected_shapes
    for name in ("quality_images", "mask_threshold", "min_area", "detections_per_image"):
        assert getattr(model, name) == getattr(expected, name), name
    for part in ("embedding_loss", "mean_shift", "grouping"):
        values, expected_values = (
            {k: v for k, v in vars(getattr(m, part)).items() if isinstance(v, (int, float, dict))}
            for m in (model, expected)
        )
        values.pop("training", None)
        expected_values.pop("training", None)
        public = {k: v for k, v in expected_values.items() if not k.startswith("_")}
        assert {k: values[k] for k in public} == public, part


def test_a_mask_rcnn_with_exchanged_heads_trains_one_step(four_shapes):
    cfg = small(LazyConfig.load(str(FOLDER / "mask_rcnn_rpe_spn.py")))
    cfg.model.roi_heads.num_classes = 4
    model, losses, moved = train(cfg)
    assert isinstance(model.proposal_generator, MeanShiftProposalGenerator)
    assert isinstance(model.roi_heads.mask_head, SPNMaskHead)
    assert {"loss_rpe_pair", "loss_mask", "loss_mask_refined", "loss_cls"} <= set(losses)
    assert all(math.isfinite(loss) for loss in losses.values())
    assert any(name.startswith("proposal_generator.") for name in moved)


class LazyArguments:
    """Arguments of the command line that default_setup reads."""

    eval_only = False
    opts: list = []

    def __init__(self, path):
        self.config_file = str(path)
