"""Small models of DeepMask, SharpMask and InstanceFCN, and their windows."""

import pytest
from detectron2.structures import ImageList

from rpe_d2.baselines import DeepMask
from rpe_d2.baselines.windows import window_grid
from tests.helpers.baseline_configs import seeded_model
from tests.helpers.models import training_input

COMMON = """
MODEL:
  META_ARCHITECTURE: ProposalNetwork
  MASK_ON: True
  BACKBONE: {NAME: build_guided_backbone}
  GUIDED_BACKBONE: {SCALES: [1.0, 0.5, 0.7071]}
  RPE: {PROPOSAL_MASK_SIZE: 14}
"""


DEEP_MASK = """
MODEL:
  PROPOSAL_GENERATOR: {NAME: DeepMask}
  DEEPMASK:
    IN_FEATURES: [p2@0.5, p2@0.7071, p2]
    WINDOW: 8
    CONV_DIM: 16
    CODE_DIM: 32
    SCORE_DIM: 32
    MASK_SIZE: 16
    PRE_NMS_TOPK: 40
    POST_NMS_TOPK_TRAIN: 20
    POST_NMS_TOPK_TEST: 10
"""


SHARP_MASK = """
MODEL:
  PROPOSAL_GENERATOR: {NAME: SharpMask}
  GUIDED_BACKBONE: {STEM: True, FREEZE: True}
  DEEPMASK: {SHARPMASK_FEATURES: [p2, stem]}
"""


INSTANCE_FCN = """
MODEL:
  PROPOSAL_GENERATOR: {NAME: InstanceFCN}
  INSTANCE_FCN:
    IN_FEATURES: [p2@0.5, p2@0.7071, p2]
    WINDOW: 9
    PARTS: 3
    CONV_DIM: 16
    PRE_NMS_TOPK: 40
    POST_NMS_TOPK_TRAIN: 20
    POST_NMS_TOPK_TEST: 10
"""


DEEP = (COMMON, DEEP_MASK)


SHARP = (COMMON, DEEP_MASK, SHARP_MASK)


INSTANCE = (COMMON, INSTANCE_FCN)


RCNN = """
MODEL:
  META_ARCHITECTURE: GeneralizedRCNN
  ROI_HEADS:
    NAME: StandardROIHeads
    IN_FEATURES: [p2, p3]
    NUM_CLASSES: 3
    BATCH_SIZE_PER_IMAGE: 16
    SCORE_THRESH_TEST: 0.0
  ROI_BOX_HEAD: {NAME: FastRCNNConvFCHead, NUM_FC: 1, FC_DIM: 16, POOLER_RESOLUTION: 7}
  ROI_MASK_HEAD: {NAME: MaskRCNNConvUpsampleHead, NUM_CONV: 1, CONV_DIM: 16}
"""


# The longer sides are canonical at the scales 1 / 2 and 1: windows of 8 cells have 64 and 32
# pixels.
SQUARES = ((12, 12, 48, 48), (56, 20, 74, 38))


each_generator = pytest.mark.parametrize(
    "texts", [DEEP, SHARP, INSTANCE], ids=["deep", "sharp", "fcn"]
)


def model_of(*texts):
    """Builds a model, with the little dropout that suits few training steps."""
    model = seeded_model(*texts)
    if isinstance(model.proposal_generator, DeepMask):
        model.proposal_generator.head.dropout = 0.1
    return model


def item_of(size=(64, 96), squares=SQUARES):
    return training_input(size, squares, (0,) * len(squares))


def images_of(model, *items):
    """Returns the padded batch that both networks of Detectron2 make."""
    mean, std = model.pixel_mean, model.pixel_std
    images = [(item["image"].to(mean) - mean) / std for item in items]
    return ImageList.from_tensors(images, model.backbone.size_divisibility)


def pyramid_of(model, *items):
    """Returns the generator, the windows, the pyramid and the padded batch."""
    images = images_of(model, *items)
    features = model.backbone(images.tensor)
    generator = model.proposal_generator
    maps = [features[name] for name in generator.in_features]
    grid = window_grid(maps, generator.strides, generator.window)
    return generator, grid, generator.pyramid(features), images
