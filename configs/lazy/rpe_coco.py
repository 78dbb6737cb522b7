"""rpe_coco.yaml as a LazyConfig: pixel embeddings on COCO, ResNet-50-FPN trained from scratch.

Train it with Detectron2's tools/lazyconfig_train_net.py --config-file configs/lazy/rpe_coco.py
"""

import torch
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import FPN, BasicStem, ResNet
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler

from rpe_d2.data import PixelLabelMapper
from rpe_d2.modeling import (
    EmbeddingHead,
    EmbeddingLoss,
    GroupHead,
    MeanShiftGrouping,
    MeanShiftLayer,
    PixelEmbeddingNet,
)

model = L(PixelEmbeddingNet)(
    backbone=L(FPN)(
        bottom_up=L(ResNet)(
            stem=L(BasicStem)(in_channels=3, out_channels=64, norm="GN"),
            stages=L(ResNet.make_default_stages)(depth=50, stride_in_1x1=False, norm="GN"),
            out_features=["res2", "res3", "res4", "res5"],
        ),
        in_features="${.bottom_up.out_features}",
        out_channels=256,
        norm="GN",
        top_block=L(LastLevelMaxPool)(),
    ),
    embedding_head=L(EmbeddingHead)(
        input_shape={f"p{i}": ShapeSpec(channels=256, stride=2**i) for i in range(2, 7)},
        num_classes=80,
        embedding_dim=32,
        vote_unit=12.0,
    ),
    embedding_loss=L(EmbeddingLoss)(
        num_points=2048,
        negative_radius=128.0,
        sem_seg_stride=4,
        loss_weights={"loss_vote": 1.0, "loss_size": 1.0},
    ),
    mean_shift=L(MeanShiftLayer)(spatial_bandwidth=12.0),
    grouping=L(MeanShiftGrouping)(min_area=64),
    group_head=L(GroupHead)(feature_dim=128, num_classes="${..embedding_head.num_classes}"),
    group_classes="head",
    min_area=64,
)

dataloader = model_zoo.get_config("common/data/coco.py").dataloader
dataloader.train.mapper._target_ = PixelLabelMapper
dataloader.train.dataset.filter_empty = False

optimizer = model_zoo.get_config("common/optim.py").AdamW
optimizer.lr = 5e-4
optimizer.weight_decay = 0.01

train = model_zoo.get_config("common/train.py").train
train.max_iter = 270000
train.device = "cuda" if torch.cuda.is_available() else "cpu"
train.output_dir = "./output/lazy_rpe_coco"

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.0),
    warmup_length=1000 / 270000,
    warmup_method="linear",
    warmup_factor=0.01,
)
