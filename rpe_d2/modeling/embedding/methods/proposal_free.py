"""Proposal-free network of Liang et al. (arXiv 1509.02636): boxes per pixel and counts."""

from typing import Dict

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch.nn import functional as F

from rpe_d2.ops.location_loss import location_loss
from rpe_d2.ops.spectral_clustering import require_scikit_learn, spectral_labels

from ...argument_checks import check_positive
from ..grouping import PixelGrouping
from ..head import EmbeddingHead, EmbeddingMaps, ImageMaps
from ..labels import IGNORED, PixelLabels
from .label_grouping import LabelGrouping, LabelMethod
from .method_loss import MethodLoss

# Unit of the predicted offsets in pixels, as MODEL.RPE.MAX_SIZE has it by default.
_UNIT = 256.0


class ProposalFreeLoss(MethodLoss):
    """Losses of the location vectors of pixels and of the number of instances of each class.

    A pixel predicts the center and two corners of the box of its instance,
    :func:`rpe_d2.ops.location_loss.location_loss`. The paper predicts them relative to the image,
    from features with coordinates; here they are offsets from the pixel. The number of instances of
    a class is the mean over the cells of a map, instead of the output of a fully connected layer,
    and its loss is the smooth L1 loss, because some images have hundreds of instances.
    """

    term_weights = {"location": 10.0, "count": 1.0}

    @configurable
    def __init__(self, *, unit: float = _UNIT, **options):
        """
        Args:
            unit: unit of the predicted offsets in pixels.
            options: arguments of :class:`MethodLoss`.

        Raises:
            ValueError: An argument is out of range.
        """
        super().__init__(**options)
        check_positive("unit", unit)
        self.unit = unit

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Dict:
        return {**super().from_config(cfg), "unit": cfg.MODEL.RPE.MAX_SIZE}

    def default_grouping(self) -> PixelGrouping:
        return ProposalFreeGrouping(unit=self.unit)

    def extra_dim(self, num_classes: int) -> int:
        return num_classes

    def check_head(self, head: EmbeddingHead) -> None:
        super().check_head(head)
        self._check_dim(head, 6)

    def _image_terms(
        self, maps: EmbeddingMaps, index: int, labels: PixelLabels
    ) -> Dict[str, torch.Tensor]:
        cells = labels.at_cells(maps.stride).flatten()
        positions = maps.votes[index].flatten(1).T / self.unit  # the centers of the cells
        pred = positions.repeat(1, 3) + maps.embeddings[index].flatten(1).T
        inside = cells != IGNORED
        count = maps.extra[index].flatten(1)[:, inside].sum(dim=1) / inside.sum().clamp(min=1)
        target = torch.bincount(labels.classes, minlength=len(count)).to(count)
        return {
            "location": location_loss(pred, positions, cells),
            "count": F.smooth_l1_loss(count, target),
        }


class ProposalFreeGrouping(LabelGrouping):
    """Grouping of the pixels of each class by spectral clustering, into the predicted number.

    Pixels are compared by their location vectors and their own positions. It needs scikit-learn.
    """

    def __init__(self, *, unit: float = _UNIT, **options):
        """
        Args:
            unit: unit of the predicted offsets in pixels, that of the loss.
            options: arguments of :class:`LabelGrouping`.

        Raises:
            ImportError: The package scikit-learn is not installed.
            ValueError: An argument is out of range.
        """
        super().__init__(**options)
        check_positive("unit", unit)
        require_scikit_learn("ProposalFreeGrouping")
        self.unit = unit

    def _labels(self, maps: ImageMaps, cells: torch.Tensor, grouped: torch.Tensor) -> torch.Tensor:
        own = maps.votes.flatten(1)[:, cells].T  # (P, 2)
        offsets = maps.embeddings.flatten(1)[:, cells].T  # (P, 6)
        x = torch.cat([own.repeat(1, 3) + self.unit * offsets, own], dim=1)
        classes = maps.logits[:-1].flatten(1)[:, cells].argmax(dim=0)
        counts = (maps.extra * maps.valid).sum(dim=(1, 2)) / maps.valid.sum().clamp(min=1)
        labels = torch.full_like(cells, -1)
        first = 0
        for number in torch.unique(classes[grouped]).tolist():
            of_class = torch.nonzero(grouped & (classes == number)).squeeze(1)
            wanted = int(counts[number].round().clamp(1, self.max_groups))
            labels[of_class] = first + spectral_labels(x[of_class], wanted)
            first += wanted
        return labels


class ProposalFreeMethod(LabelMethod):
    """Location vectors of six numbers, and a map of counts for each class."""

    grouping = ProposalFreeGrouping
    unused_keys = (
        *(key for key in LabelMethod.unused_keys if key != "MODEL.RPE.MAX_SIZE"),
        "MODEL.RPE.EMBEDDING_DIM",
        "MODEL.RPE.TRAIN_POINTS",
        "MODEL.RPE.SAMPLING",
    )

    def build_head(self, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]) -> EmbeddingHead:
        return EmbeddingHead(
            cfg,
            input_shape,
            embedding_dim=6,
            vote_unit=None,
            max_size=None,
            normalize=False,
            extra_dim=cfg.MODEL.RPE.NUM_CLASSES,
        )

    def build_loss(self, cfg: CfgNode) -> ProposalFreeLoss:
        return ProposalFreeLoss(cfg)

    def _grouping(self, cfg: CfgNode, limits: Dict[str, float]) -> PixelGrouping:
        return super()._grouping(cfg, {**limits, "unit": cfg.MODEL.RPE.MAX_SIZE})
