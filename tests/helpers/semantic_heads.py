"""Configurations of semantic heads as YAML text, and inputs for them."""

import torch
from detectron2.modeling import build_model
from torch import nn

from tests.helpers.configs import small_cfg_with

IGNORED = 255
SEMANTIC = """
MODEL:
  META_ARCHITECTURE: SemanticSegmentor
  SEM_SEG_HEAD: {NUM_CLASSES: 4, CONVS_DIM: 32}
"""
FPN = "MODEL: {SEM_SEG_HEAD: {NAME: SemSegFPNHead}}"  # Detectron2's
EMBEDDING = "MODEL: {SEM_SEG_HEAD: {NAME: EmbeddingSemSegHead}}"
FCN = """
MODEL:
  BACKBONE: {NAME: build_resnet_backbone}
  RESNETS: {OUT_FEATURES: [res3, res4, res5]}
  SEM_SEG_HEAD: {NAME: FCNHead, IN_FEATURES: [res5, res3, res4]}
"""
_VGG_FEATURES = "[fc7, pool1_indices, pool2_indices, pool3_indices, pool4_indices, pool5_indices]"
DECONVNET = f"""
MODEL:
  BACKBONE: {{NAME: build_vgg16_backbone}}
  VGG: {{OUT_FEATURES: {_VGG_FEATURES}, WIDTH: 0.125, FC_DIM: 32, NORM: BN}}
  SEM_SEG_HEAD: {{NAME: DeconvNetHead, IN_FEATURES: {_VGG_FEATURES}, NORM: BN}}
"""
MULTI_SCALE = """
MODEL:
  BACKBONE: {NAME: build_guided_backbone}
  RESNETS: {OUT_FEATURES: [res2, res3], NORM: GN}
  GUIDED_BACKBONE:
    NAME: build_resnet_backbone
    SCALES: [1.0, 0.5, 0.25]
    PYRAMID: laplacian
  SEM_SEG_HEAD:
    NAME: MultiScaleSemSegHead
    IN_FEATURES: [res2, res3, res2@0.5, res3@0.5, res3@0.25]
"""
RECURRENT = """
MODEL:
  BACKBONE: {NAME: build_guided_backbone}
  RESNETS: {OUT_FEATURES: [res3]}
  GUIDED_BACKBONE: {NAME: build_resnet_backbone}
  SEM_SEG_HEAD: {NAME: RecurrentConvSemSegHead, IN_FEATURES: [image, res3]}
"""
# By name of the head, with the text that configures it.
HEADS = {
    "EmbeddingSemSegHead": EMBEDDING,
    "FCNHead": FCN,
    "DeconvNetHead": DECONVNET,
    "MultiScaleSemSegHead": MULTI_SCALE,
    "RecurrentConvSemSegHead": RECURRENT,
}


def pair_loss(weight: float) -> str:
    """Returns the YAML text that sets the weight of the pair loss."""
    return f"MODEL: {{SEM_SEG_HEAD: {{PAIR_LOSS_WEIGHT: {weight}}}}}"


def semantic_model(*texts: str) -> nn.Module:
    """Builds a seeded semantic segmentor from YAML texts."""
    torch.manual_seed(0)
    return build_model(small_cfg_with(SEMANTIC, *texts))


def semantic_input(size=(70, 90), seed=1, num_classes=4):
    """Returns one item of a batch: noise, with random labels of which some are ignored."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, num_classes, size, generator=generator)
    labels[:5] = IGNORED
    image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
    return {"image": image, "sem_seg": labels, "height": size[0], "width": size[1]}
