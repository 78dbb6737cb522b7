"""Detectron2's Mask R-CNN on COCO with two heads of rpe_d2, as a LazyConfig.

Mean-shift proposals replace the region proposal network, and spatial propagation refines the masks.
Train it with Detectron2's tools/lazyconfig_train_net.py
--config-file configs/lazy/mask_rcnn_rpe_spn.py
"""

import torch
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec

from rpe_d2.data import PixelLabelMapper
from rpe_d2.modeling import MeanShiftProposalGenerator, SPNMaskHead

model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
model.proposal_generator = L(MeanShiftProposalGenerator)(
    input_shape={f"p{i}": ShapeSpec(channels=256, stride=2**i) for i in range(2, 7)},
    mask_size=28,
)
model.roi_heads.mask_head = L(SPNMaskHead)(
    input_shape=L(ShapeSpec)(channels=256, width=14, height=14),
    num_classes="${..num_classes}",
)

dataloader = model_zoo.get_config("common/data/coco.py").dataloader
dataloader.train.mapper._target_ = PixelLabelMapper

optimizer = model_zoo.get_config("common/optim.py").AdamW
optimizer.lr = 2e-4
lr_multiplier = model_zoo.get_config("common/coco_schedule.py").lr_multiplier_1x

train = model_zoo.get_config("common/train.py").train
train.device = "cuda" if torch.cuda.is_available() else "cpu"
train.output_dir = "./output/lazy_mask_rcnn_rpe_spn"
