"""Base class of proposal generators that score and segment sliding windows."""

import logging
import math
from abc import ABC, abstractmethod
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import nn

from rpe_d2.config import check_config
from rpe_d2.modeling.argument_checks import check_batch, check_range, checked_topk
from rpe_d2.modeling.layers import chosen_features
from rpe_d2.modeling.masks import windows_to_proposals

from .window_losses import crop_object_masks, window_losses
from .windows import (
    IGNORED,
    NEGATIVE,
    WindowGrid,
    Windows,
    WindowTolerances,
    by_level,
    label_windows,
    window_grid,
)

logger = logging.getLogger(__name__)

# The mapper whose images are patches of one window.
_CROP_MAPPER = "WindowCropMapper"


class WindowProposalGenerator(nn.Module, ABC):
    """Scores square windows at every cell of an image pyramid and segments the best of them.

    The papers train on equal numbers of positive and negative patches. Positive patches are
    canonical ones that are shifted and resized within tolerances. The papers apply the network to
    whole images only at inference. Here the network is also trained on whole images, at all scales.
    The windows of the dense grid are labeled with the same tolerances, and equal numbers of
    positive and negative windows are sampled. Around a window, the network sees the image in
    training and at inference, where a network for patches would see zeros or mirrored pixels.
    Window positions are multiples of the stride, and window sizes are those of the pyramid. Random
    image sizes (``INPUT.MIN_SIZE_TRAIN``) replace the jitter of the papers.

    With ``INPUT.DATASET_MAPPER_NAME WindowCropMapper`` the network is trained on patches instead,
    as in the papers: each image is the patch of one window.

    Masks are predicted only for the windows with the best scores. Crowds, which Detectron2's
    mappers drop, count as background, as in the RPN. The masks are learned from ``gt_masks``, or
    from filled boxes if there are none.
    """

    dataset_mapper_name = "PixelLabelMapper"

    def __init__(
        self,
        input_shape: Dict[str, ShapeSpec],
        *,
        in_features: Sequence[str],
        window: int,
        tolerances: WindowTolerances = WindowTolerances(),
        batch_size_per_image: int = 64,
        pre_nms_topk: int = 500,
        post_nms_topk_train: int = 500,
        post_nms_topk_test: int = 500,
        nms_threshold: float = 1.0,
        min_box_size: float = 0.0,
        mask_threshold: float = 0.2,
        proposal_mask_size: int = 112,
        masks_in_training: bool = False,
        train_on_crops: bool = False,
        alternate: bool = False,
        mask_classes: Sequence[int] = (),
        score_classes: Sequence[int] = (),
    ):
        """
        Args:
            input_shape: channels and stride of the backbone's feature maps.
            in_features: maps of the image pyramid, all with the same number of channels.
            window: side of a window in cells, on every map.
            tolerances: limits that label windows as positive or negative.
            batch_size_per_image: windows of an image to train on, at most half of them positive.
            pre_nms_topk: windows of an image, over all scales, that are segmented.
            post_nms_topk_train, post_nms_topk_test: largest number of proposals of an image. In
                training, 0 means no proposals, for a network without RoI heads.
            nms_threshold: proposals whose boxes have a higher IoU than this with a better proposal
                are dropped; 1 for no suppression.
            min_box_size: proposals with a shorter side, in pixels, are dropped.
            mask_threshold: probability at or above which a cell belongs to the object.
            proposal_mask_size: side length M of the masks of proposals.
            masks_in_training: whether proposals have masks in training too.
            train_on_crops: whether training images are patches of the size of a window. A patch is
                positive if it has an object, of which it then has one.
            alternate: whether steps learn masks and scores in turn. Steps for masks sample positive
                windows alone.
            mask_classes: classes of the objects whose masks are learned; empty for all.
            score_classes: classes of the objects for which windows are positive; empty for all.
                Others count as background.
        """
        super().__init__()
        check_range("window", window, 1)
        check_range("batch_size_per_image", batch_size_per_image, 2)
        check_range("nms_threshold", nms_threshold, 0, 1)
        check_range("mask_threshold", mask_threshold, 0.01, 0.99)
        check_range("proposal_mask_size", proposal_mask_size, 1)
        check_range("min_box_size", min_box_size, 0)
        self.in_features = list(in_features)
        self.in_channels = _common_channels("in_features", in_features, input_shape)
        self.strides = [input_shape[name].stride for name in in_features]
        self.window = window
        self.tolerances = tolerances
        self.batch_size_per_image = batch_size_per_image
        self.pre_nms_topk = pre_nms_topk
        self.post_nms_topk = checked_topk(pre_nms_topk, post_nms_topk_train, post_nms_topk_test)
        self.nms_threshold = nms_threshold
        self.min_box_size = min_box_size
        self.mask_threshold = mask_threshold
        self.proposal_mask_size = proposal_mask_size
        self.masks_in_training = masks_in_training
        self.train_on_crops = train_on_crops
        self.alternate = alternate
        self.mask_classes = tuple(mask_classes)
        self.score_classes = tuple(score_classes)
        self._warn_of_gaps()

    @classmethod
    def window_arguments(
        cls, cfg: CfgNode, key: str, input_shape: Dict[str, ShapeSpec]
    ) -> Dict[str, Any]:
        """Reads the arguments of this class from the node ``MODEL.{key}``."""
        check_config(cfg, f"MODEL.{key}", "MODEL.RPE")
        node = cfg.MODEL[key]
        _common_channels(f"MODEL.{key}.IN_FEATURES", node.IN_FEATURES, input_shape)
        train_on_crops = cfg.INPUT.DATASET_MAPPER_NAME == _CROP_MAPPER
        if train_on_crops:
            sides = [node.WINDOW * input_shape[name].stride for name in node.IN_FEATURES]
            _check_crops(cfg.INPUT.CROP.SIZE, sides)
        limit = WindowTolerances.negative_scale
        if node.POSITIVE_SCALE >= limit:
            raise ValueError(
                f"MODEL.{key}.POSITIVE_SCALE is {node.POSITIVE_SCALE}; allowed: less than {limit}"
            )
        return {
            "input_shape": input_shape,
            "in_features": node.IN_FEATURES,
            "window": node.WINDOW,
            "tolerances": WindowTolerances(positive_scale=node.POSITIVE_SCALE),
            "batch_size_per_image": node.BATCH_SIZE_PER_IMAGE,
            "pre_nms_topk": node.PRE_NMS_TOPK,
            "post_nms_topk_train": node.POST_NMS_TOPK_TRAIN,
            "post_nms_topk_test": node.POST_NMS_TOPK_TEST,
            "nms_threshold": node.NMS_THRESH,
            "min_box_size": cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE,
            "proposal_mask_size": cfg.MODEL.RPE.PROPOSAL_MASK_SIZE,
            "masks_in_training": cfg.MODEL.PROPOSAL_GENERATOR.MASKS_IN_TRAINING,
            "train_on_crops": train_on_crops,
        }

    @abstractmethod
    def pyramid(self, features: Dict[str, torch.Tensor]) -> List:
        """Computes the maps that windows are read from, for each level of the image pyramid."""

    @abstractmethod
    def window_codes(self, level: Any) -> torch.Tensor:
        """Computes codes (B, D, rows, columns) of all windows of a level of :meth:`pyramid`."""

    @abstractmethod
    def scores(self, codes: torch.Tensor) -> torch.Tensor:
        """Computes logits (N,) that windows with codes (N, D) show an object."""

    @abstractmethod
    def masks(self, pyramid: List, codes: torch.Tensor, windows: Windows) -> torch.Tensor:
        """Computes mask logits (N, m, m) of windows with codes (N, D)."""

    @abstractmethod
    def weighted_losses(
        self, mask_loss: torch.Tensor, score_loss: torch.Tensor
    ) -> Dict[str, torch.Tensor]:
        """Weights and names the two losses of :func:`window_losses`."""

    def mask_targets(self, coverage: torch.Tensor) -> torch.Tensor:
        """Computes mask targets from the fraction of each cell (P, m, m) that objects cover."""
        return coverage >= 0.5

    def sampled_codes(self, pyramid: List, windows: Windows) -> torch.Tensor:
        """Computes the codes (N, D) of some windows, which :meth:`window_codes` also returns."""
        return by_level(_read_codes, [self.window_codes(level) for level in pyramid], windows)

    def forward(
        self,
        images: ImageList,
        features: Dict[str, torch.Tensor],
        gt_instances: Optional[List[Instances]] = None,
    ) -> Tuple[List[Instances], Dict[str, torch.Tensor]]:
        """
        Args:
            images: padded batch; only the image sizes are used.
            features: feature maps of the backbone.
            gt_instances: in training, the ground truth of each image.

        Returns:
            For each image ``proposal_boxes`` and ``objectness_logits``, by decreasing score. At
            inference, and with ``masks_in_training`` also in training, they have
            ``proposal_masks`` (R, M, M) uint8. The second value is a dict of losses in training.
        """
        check_batch(
            type(self).__name__, len(next(iter(features.values()))), len(images.image_sizes)
        )
        grid = window_grid([features[n] for n in self.in_features], self.strides, self.window)
        pyramid = self.pyramid(features)
        losses = {}
        if self.training:
            if gt_instances is None:
                raise ValueError(
                    'the batch has no "instances" to train on; an image without objects needs an '
                    'empty list of "annotations"'
                )
            losses = self._losses(pyramid, grid, gt_instances)
        return self._proposals(pyramid, grid, images.image_sizes), losses

    def _losses(
        self, pyramid: List, grid: WindowGrid, gt_instances: List[Instances]
    ) -> Dict[str, torch.Tensor]:
        branch = self._branch()
        gt_instances = [self._scored(targets) for targets in gt_instances]
        labels = torch.stack([self.label(grid, targets) for targets in gt_instances])  # (B, A)
        image, index = self._sample(labels, with_negative=branch != "mask")
        windows = grid.select(image, index)
        codes = self.sampled_codes(pyramid, windows)
        positive = labels[image, index] >= 0
        masked = positive & self._has_mask(labels, image, index, gt_instances)
        masks = self.masks(pyramid, codes[masked], Windows(*(part[masked] for part in windows)))
        # Samples are sorted by image, so the targets of the images can be joined.
        coverage = []
        for number, targets in enumerate(gt_instances):
            own = index[masked & (image == number)]
            boxes, size = grid.boxes[own], masks.shape[-1]
            coverage.append(crop_object_masks(targets, labels[number, own], boxes, size))
        mask_targets = self.mask_targets(torch.cat(coverage))
        losses = self.weighted_losses(
            *window_losses(self.scores(codes), masks, positive, mask_targets)
        )
        return {name: loss for name, loss in losses.items() if name.endswith(branch)}

    def _branch(self) -> str:
        """Returns which of "mask" and "score" this step learns, or "" for both."""
        if not self.alternate or not torch.is_grad_enabled():
            return ""
        return ("mask", "score")[get_event_storage().iter % 2]

    def _scored(self, targets: Instances) -> Instances:
        """Returns the objects for which windows are positive."""
        if not self.score_classes:
            return targets
        return targets[torch.isin(targets.gt_classes, _like(targets, self.score_classes))]

    def _has_mask(
        self,
        labels: torch.Tensor,
        image: torch.Tensor,
        index: torch.Tensor,
        gt_instances: List[Instances],
    ) -> torch.Tensor:
        """Returns (N,) bool: whether the masks of sampled windows are learned if positive."""
        if not self.mask_classes:
            return torch.ones_like(image, dtype=torch.bool)
        has_mask = torch.zeros_like(image, dtype=torch.bool)
        for number, targets in enumerate(gt_instances):
            own = torch.nonzero((image == number) & (labels[image, index] >= 0)).squeeze(1)
            classes = targets.gt_classes[labels[number, index[own]]]
            has_mask[own] = torch.isin(classes, _like(targets, self.mask_classes))
        return has_mask

    @torch.no_grad()
    def label(self, grid: WindowGrid, targets: Instances) -> torch.Tensor:
        """Labels the windows of an image with the object they show.

        Returns:
            (A,) int64: the index of the object, NEGATIVE or IGNORED. Windows with their center
            outside the image are ignored, and for patches all but the one that is the patch.
        """
        if self.train_on_crops:
            return self._label_crop(grid, targets)
        sides = grid.boxes[:, 2] - grid.boxes[:, 0]
        labels = label_windows(grid.centers, sides, targets.gt_boxes.tensor, self.tolerances)
        return labels.masked_fill(~grid.centered_in(targets.image_size), IGNORED)

    def _label_crop(self, grid: WindowGrid, targets: Instances) -> torch.Tensor:
        height, width = targets.image_size
        whole = grid.boxes.new_tensor([0, 0, width, height])
        is_whole = (grid.boxes - whole).abs().amax(dim=1) < 0.5
        if not bool(is_whole.any()):
            sides = [self.window * stride for stride in self.strides]
            raise ValueError(
                f"{type(self).__name__} is trained on crops and gets an image of {height} x {width}"
                f" pixels; allowed: squares of {' or '.join(f'{side:g}' for side in sides)}"
            )
        label = 0 if len(targets) else NEGATIVE
        return torch.full_like(grid.row, IGNORED).masked_fill(is_whole, label)

    def _sample(
        self, labels: torch.Tensor, with_negative: bool = True
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Samples equal numbers of positive and negative windows of a batch.

        The negative windows are distributed evenly over the images, with at least one in each.

        Args:
            labels: (B, A).
            with_negative: whether to sample negative windows; otherwise there may be twice as many
                positive ones.

        Returns:
            Indices (N,) of the images, in increasing order, and (N,) of the windows in the grid.
        """
        most = max(self.batch_size_per_image // 2, 1)
        ranks = torch.rand(labels.shape, device=labels.device)
        if not with_negative:
            positive = _select_lowest(ranks, labels >= 0, self.batch_size_per_image)
            return torch.nonzero(positive, as_tuple=True)
        positive = _select_lowest(ranks, labels >= 0, most)
        num_negative = max(-(-int(positive.sum()) // len(labels)), 1)
        negative = _select_lowest(ranks, labels == NEGATIVE, num_negative)
        image, index = torch.nonzero(positive | negative, as_tuple=True)
        return image, index

    @torch.no_grad()
    def _proposals(
        self, pyramid: List, grid: WindowGrid, image_sizes: Sequence[Tuple[int, int]]
    ) -> List[Instances]:
        topk = self.post_nms_topk[self.training]
        has_masks = self.masks_in_training or not self.training
        if topk == 0:
            return [_no_proposals(size, grid.boxes) for size in image_sizes]
        levels = [self.window_codes(level) for level in pyramid]
        scores = torch.cat(
            [
                self.scores(codes.permute(0, 2, 3, 1).flatten(0, 2)).view(len(codes), -1)
                for codes in levels
            ],
            dim=1,
        )  # (B, A) in the order of the grid
        proposals = []
        for number, size in enumerate(image_sizes):
            inside = grid.centered_in(size)
            own = scores[number].float().masked_fill(~inside, -torch.inf)
            best = own.topk(min(self.pre_nms_topk, int(inside.sum()))).indices
            windows = grid.select(torch.full_like(best, number), best)
            masks = self.masks(pyramid, by_level(_read_codes, levels, windows), windows)
            proposals.append(
                windows_to_proposals(
                    masks.float().sigmoid(),
                    own[best],
                    grid.boxes[best],
                    size,
                    self.mask_threshold,
                    self.nms_threshold,
                    self.min_box_size,
                    topk,
                    self.proposal_mask_size if has_masks else None,
                )
            )
        return proposals

    def _warn_of_gaps(self) -> None:
        canonical = self.tolerances.object_size * self.window
        sizes = sorted(canonical * stride for stride in self.strides)
        for small, large in zip(sizes, sizes[1:]):
            gap = math.log2(large / small)
            if gap > 2 * self.tolerances.positive_scale + 0.01:
                logger.warning(
                    "%s: objects of %.0f and of %.0f pixels are canonical, but some sizes in "
                    "between have no positive windows: add a scale, or set POSITIVE_SCALE to %.2f",
                    type(self).__name__, small, large, gap / 2,
                )  # fmt: skip


def _common_channels(option: str, names: Sequence[str], input_shape: Dict[str, ShapeSpec]) -> int:
    """Returns the number of channels of the feature maps, which share one network."""
    if not names:
        raise ValueError(f"{option} is []; allowed: one or more feature maps")
    chosen_features(option, names, input_shape)
    channels = {name: input_shape[name].channels for name in names}
    if len(set(channels.values())) > 1:
        described = ", ".join(f"{name} has {count} channels" for name, count in channels.items())
        raise ValueError(f"{option}: {described}; allowed: maps with the same number of channels")
    return channels[names[0]]


def _check_crops(size: Sequence[float], sides: Sequence[float]) -> None:
    """Checks that crops have the size of a window on one of the maps."""
    if not any(all(abs(part - side) < 0.5 for part in size) for side in sides):
        allowed = " or ".join(f"[{side:g}, {side:g}]" for side in sides)
        raise ValueError(
            f"INPUT.CROP.SIZE is {list(size)}; allowed with INPUT.DATASET_MAPPER_NAME "
            f"{_CROP_MAPPER}: the side of a window, {allowed}"
        )


def _like(targets: Instances, classes: Sequence[int]) -> torch.Tensor:
    return torch.tensor(classes, device=targets.gt_classes.device)


def _read_codes(
    codes: torch.Tensor, image: torch.Tensor, row: torch.Tensor, column: torch.Tensor
) -> torch.Tensor:
    return codes[image, :, row, column]


def _select_lowest(ranks: torch.Tensor, allowed: torch.Tensor, count: int) -> torch.Tensor:
    """Selects in each row of (B, A) up to ``count`` allowed elements with the lowest ranks."""
    ranks = ranks.masked_fill(~allowed, torch.inf)
    limit = ranks.kthvalue(min(count, ranks.shape[1]), dim=1, keepdim=True).values
    return allowed & (ranks <= limit)


def _no_proposals(size: Tuple[int, int], boxes: torch.Tensor) -> Instances:
    return Instances(
        tuple(size), proposal_boxes=Boxes(boxes[:0]), objectness_logits=boxes.new_zeros(0)
    )
