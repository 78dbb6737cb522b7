"""Small configurations and inputs that several tests share."""

import math

import torch
from detectron2.config import get_cfg
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from rpe_d2 import add_rpe_config
from rpe_d2.modeling import EmbeddingMaps
from rpe_d2.modeling.embedding.head import cell_centers
from rpe_d2.modeling.embedding.labels import pixel_labels

SQUARES = [(0, 0, 40, 40), (40, 0, 80, 40), (8, 48, 40, 80), (56, 56, 64, 64)]
CLASSES = [0, 0, 1, 2]


def small_cfg(*overrides):
    """Returns the configuration of a PixelEmbeddingNet that runs in tenths of a second.

    It has a ResNet-18-FPN with 32 channels and 3 classes.

    Args:
        overrides: keys and values in turn, as on a command line.
    """
    cfg = get_cfg()
    add_rpe_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "PixelEmbeddingNet"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.RPE.NUM_CLASSES = 3
    cfg.MODEL.RPE.CONV_DIM = 32
    cfg.MODEL.RPE.EMBEDDING_DIM = 8
    cfg.MODEL.RPE.TRAIN_POINTS = 200
    cfg.merge_from_list(list(overrides))
    return cfg


def square_instances(size, squares, classes):
    """Returns instances of filled squares (x0, y0, x1, y1) in an image of size (H, W)."""
    masks = torch.zeros(len(squares), *size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, squares):
        mask[y0:y1, x0:x1] = True
    instances = Instances(size)
    instances.gt_masks = BitMasks(masks)
    instances.gt_boxes = Boxes(torch.tensor(squares, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    return instances


def training_input(size=(64, 96), squares=((4, 4, 30, 30), (30, 10, 60, 50)), classes=(0, 2)):
    """Returns one item of a batch, an image of noise with brighter squares."""
    generator = torch.Generator().manual_seed(sum(size) + len(squares))
    image = torch.rand(3, *size, generator=generator) * 60
    for number, (x0, y0, x1, y1) in enumerate(squares):
        image[:, y0:y1, x0:x1] += 80 + 60 * number
    return {
        "image": image.to(torch.uint8),
        "height": size[0],
        "width": size[1],
        "instances": square_instances(size, list(squares), list(classes)),
    }


def perfect_maps(stride=2, size=(80, 96), noise=0.05, num_classes=3):
    """Returns what a perfect network would predict for SQUARES.

    Embeddings are those of the instances with some noise. Class logits are certain. Votes differ
    from the instance centers by about a pixel. With one class, all squares belong to it.

    Returns:
        Maps (:class:`EmbeddingMaps`) of a batch of one image, the instance (h, w) of each cell, and
        the size of the image.
    """
    generator = torch.Generator().manual_seed(0)
    classes = [min(number, num_classes - 1) for number in CLASSES]
    labels = pixel_labels(square_instances(size, SQUARES, classes), size)
    grid = labels.at_cells(stride)
    directions = torch.eye(8)[:4]
    embeddings = directions[grid.clamp(min=0)].permute(2, 0, 1)
    embeddings = embeddings + noise * torch.randn(embeddings.shape, generator=generator)
    class_map = labels.class_map(num_classes, num_classes)
    class_map = class_map[stride // 2 :: stride, stride // 2 :: stride]
    logits = 10.0 * F.one_hot(class_map, num_classes + 1).permute(2, 0, 1)
    votes = labels.centers[grid.clamp(min=0)].permute(2, 0, 1)
    own = cell_centers(grid.shape, stride, torch.device("cpu"))
    votes = torch.where(grid >= 0, votes, own) + torch.randn(own.shape, generator=generator)
    embeddings = F.normalize(embeddings, dim=0)
    sizes = labels.sizes[grid.clamp(min=0)][None, None]
    maps = EmbeddingMaps(
        embeddings[None], logits[None].float(), votes[None], sizes, embeddings[None], stride
    )
    return maps, grid, size


def losses_of(model, batch):
    """Computes the losses of a batch in training mode."""
    with EventStorage():
        return model.train()(batch)


def train(model, batch, steps, lr=2e-3):
    """Trains a model in a plain loop without rpe_d2.engine. Returns the total loss of each step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    history = []
    for _ in range(steps):
        losses = losses_of(model, batch)
        total = sum(losses.values())
        assert math.isfinite(float(total)), losses
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append(float(total))
    return history
