"""FCIS: one set of position-sensitive score maps detects and segments objects."""

from typing import Dict, List, NamedTuple, Sequence, Tuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.structures import Boxes, Instances
from torch import nn
from torch.nn import functional as F

from rpe_d2.config import check_config
from rpe_d2.modeling.argument_checks import check_range
from rpe_d2.modeling.layers import chosen_features

from .position_sensitive import position_sensitive_regions
from .regions import RegionLabels, RegionROIHeads, box_loss, class_loss, select_class, to_rois


class FCISPrediction(NamedTuple):
    """Predictions for R regions.

    Attributes:
        class_logits: (R, K + 1) class logits, background last.
        mask_logits: (R, 2, K + 1, m, m) logits of the outside and the inside of each class.
        deltas: (R, 4) box deltas for all classes.
    """

    class_logits: torch.Tensor
    mask_logits: torch.Tensor
    deltas: torch.Tensor


class FCISHead(nn.Module):
    """Computes score maps of an image and reads regions from them (section 3)."""

    def __init__(
        self,
        channels: int,
        *,
        stride: int,
        num_classes: int,
        conv_dim: int = 1024,
        parts: int = 7,
        cells: int = 3,
    ):
        """
        Args:
            channels: channels of the feature map.
            stride: its stride in pixels.
            num_classes: K, the number of foreground classes.
            conv_dim: channels of the 1x1 convolution before the score maps.
            parts: k; a region has k x k position-sensitive parts.
            cells: cells of a part in each direction; masks have k * cells in each direction.
        """
        super().__init__()
        for name, value in (("conv_dim", conv_dim), ("parts", parts), ("cells", cells)):
            check_range(name, value, 1)
        self.stride = stride
        self.num_classes = num_classes
        self.parts = parts
        self.cells = cells
        self.conv = nn.Conv2d(channels, conv_dim, 1)
        self.scores = nn.Conv2d(conv_dim, 2 * (num_classes + 1) * parts**2, 1)
        self.boxes = nn.Conv2d(conv_dim, 4 * parts**2, 1)
        for layer in (self.conv, self.scores, self.boxes):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def maps(self, features: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """Computes score maps (N, 2 (K + 1) k k, H, W) and maps of deltas (N, 4 k k, H, W)."""
        x = F.relu(self.conv(features))
        return self.scores(x), self.boxes(x)

    def forward(
        self, maps: Tuple[torch.Tensor, torch.Tensor], boxes: List[torch.Tensor]
    ) -> FCISPrediction:
        """
        Args:
            maps: the result of :meth:`maps`.
            boxes: the regions (R_i, 4) of each image.
        """
        rois = to_rois(boxes)
        scale = 1 / self.stride
        masks = position_sensitive_regions(maps[0], rois, self.parts, self.cells, scale)
        masks = masks.unflatten(1, (2, self.num_classes + 1))
        # The score of a class is the larger one of inside and outside, averaged over the pixels.
        class_logits = masks.amax(dim=1).mean(dim=(-2, -1))
        deltas = position_sensitive_regions(maps[1], rois, self.parts, 1, scale)
        return FCISPrediction(class_logits, masks, deltas.mean(dim=(-2, -1)))


@ROI_HEADS_REGISTRY.register()
class FCISROIHeads(RegionROIHeads):
    """Detects and segments objects with inside and outside score maps (Li et al., CVPR 2017).

    The score maps are computed from one feature map of any backbone. The authors use a ResNet-50 or
    ResNet-101 whose last stage is dilated to stride 16 (``MODEL.RESNETS.RES5_DILATION: 2``), with
    proposals from res4 and regions from res5. For small images, a finer level of an FPN works
    better. At inference the regressed boxes join the proposals and are scored too. The box
    regression is class-agnostic, regardless of ``MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG``.
    """

    @configurable
    def __init__(
        self,
        input_shape: Dict[str, ShapeSpec],
        *,
        num_classes: int,
        in_features: Sequence[str] = ("res4",),
        conv_dim: int = 1024,
        parts: int = 7,
        cells: int = 3,
        mask_loss_weight: float = 10.0,
        **kwargs,
    ):
        """
        Args:
            input_shape: channels and stride of the backbone's feature maps.
            num_classes: number of foreground classes.
            in_features: name of the one feature map.
            conv_dim, parts, cells: see :class:`FCISHead`.
            mask_loss_weight: weight of the mask loss.
            kwargs: see :class:`rpe_d2.baselines.regions.RegionROIHeads`.
        """
        super().__init__(
            num_classes=num_classes,
            mask_size=parts * cells,
            mask_loss_weight=mask_loss_weight,
            **kwargs,
        )
        self.in_feature = _one_feature("in_features", in_features, input_shape)
        shape = input_shape[self.in_feature]
        self.head = FCISHead(
            shape.channels,
            stride=shape.stride,
            num_classes=num_classes,
            conv_dim=conv_dim,
            parts=parts,
            cells=cells,
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]):
        check_config(cfg, "MODEL.FCIS")
        key, names = "MODEL.ROI_HEADS.IN_FEATURES", cfg.MODEL.ROI_HEADS.IN_FEATURES
        return {
            **super().from_config(cfg),
            "input_shape": input_shape,
            "in_features": [_one_feature(key, names, input_shape)],
            "conv_dim": cfg.MODEL.FCIS.CONV_DIM,
        }

    def region_maps(self, features: Dict[str, torch.Tensor]) -> Tuple[torch.Tensor, torch.Tensor]:
        return self.head.maps(features[self.in_feature])

    def region_losses(
        self,
        maps: Tuple[torch.Tensor, torch.Tensor],
        boxes: List[torch.Tensor],
        labels: List[RegionLabels],
        targets: List[Instances],
    ) -> Dict[str, torch.Tensor]:
        boxes = [part.detach() for part in boxes]
        return self._losses(self.head(maps, boxes), boxes, labels)

    def region_predictions(
        self,
        maps: Tuple[torch.Tensor, torch.Tensor],
        boxes: List[torch.Tensor],
        image_sizes: List[Tuple[int, int]],
    ) -> Tuple[Sequence[torch.Tensor], Sequence[torch.Tensor], Sequence[torch.Tensor]]:
        deltas = self.head(maps, boxes).deltas
        regressed = self.box2box_transform.apply_deltas(deltas, torch.cat(boxes))
        regressed = regressed.split([len(part) for part in boxes])
        boxes = [
            torch.cat([part, _clip_boxes(moved, size)])
            for part, moved, size in zip(boxes, regressed, image_sizes)
        ]
        prediction = self.head(maps, boxes)
        counts = [len(part) for part in boxes]
        scores = prediction.class_logits.softmax(dim=1)[:, :-1].split(counts)
        return boxes, _class_masks(prediction).split(counts), scores

    def region_masks(
        self, maps: Tuple[torch.Tensor, torch.Tensor], boxes: List[torch.Tensor]
    ) -> torch.Tensor:
        return _class_masks(self.head(maps, boxes))

    def _losses(
        self, prediction: FCISPrediction, boxes: List[torch.Tensor], labels: List[RegionLabels]
    ) -> Dict[str, torch.Tensor]:
        targets = self.region_targets(boxes, labels)
        mask_logits = prediction.mask_logits[targets.foreground].transpose(1, 2)
        mask_logits = select_class(mask_logits, targets.classes[targets.foreground])  # (F, 2, m, m)
        mask_loss = F.cross_entropy(mask_logits, targets.masks.long(), reduction="sum")
        return {
            "loss_cls": class_loss(prediction.class_logits, targets.classes),
            "loss_mask": self.mask_loss_weight * mask_loss / max(targets.masks.numel(), 1),
            "loss_box_reg": box_loss(prediction.deltas[targets.foreground], targets),
        }


def _one_feature(option: str, names: Sequence[str], input_shape: Dict[str, ShapeSpec]) -> str:
    """Returns the single feature map that an option names."""
    if len(names) != 1:
        raise ValueError(f"{option} is {', '.join(names)}; allowed for FCISROIHeads: one map")
    return chosen_features(option, names, input_shape)[0]


def _class_masks(prediction: FCISPrediction) -> torch.Tensor:
    """Computes the masks (R, K, m, m) of the foreground classes, in [0, 1]."""
    return prediction.mask_logits.softmax(dim=1)[:, 1, :-1]


def _clip_boxes(boxes: torch.Tensor, size: Tuple[int, int]) -> torch.Tensor:
    """Clips boxes (R, 4) to an image (H, W) and drops those outside it."""
    clipped = Boxes(boxes)
    clipped.clip(size)
    return clipped[clipped.nonempty()].tensor
