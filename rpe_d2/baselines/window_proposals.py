"""What generators of mask proposals from sliding windows share: the pyramid, the sampling, the best windows."""

import logging
import math
from abc import ABC, abstractmethod
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn
from torchvision.ops import roi_align

from rpe_d2.config import check_config
from rpe_d2.modeling.embedding.labels import instance_masks
from rpe_d2.modeling.layers import chosen_features
from rpe_d2.modeling.masks import windows_to_proposals

from .windows import (
    IGNORED,
    NEGATIVE,
    WindowTolerances,
    label_windows,
    window_counts,
)

logger = logging.getLogger(__name__)


class Windows(NamedTuple):
    """Windows of a batch.

    Attributes:
        level: (N,) int64 map of the pyramid.
        image: (N,) int64 place in the batch.
        row, column: (N,) int64 first ones on the padded map.
    """

    level: torch.Tensor
    image: torch.Tensor
    row: torch.Tensor
    column: torch.Tensor


class WindowGrid(NamedTuple):
    """All windows of an image, level by level and row by row.

    Attributes:
        level, row, column: (A,) int64.
        boxes: (A, 4) in pixels; windows may reach beyond the image.
    """

    level: torch.Tensor
    row: torch.Tensor
    column: torch.Tensor
    boxes: torch.Tensor

    def of(self, image: torch.Tensor, index: torch.Tensor) -> Windows:
        """Windows (N,) of this grid in images (N,) of a batch."""
        return Windows(self.level[index], image, self.row[index], self.column[index])

    @property
    def centers(self) -> torch.Tensor:
        return (self.boxes[:, :2] + self.boxes[:, 2:]) / 2

    def centered_in(self, size: Tuple[int, int]) -> torch.Tensor:
        """(A,) bool: windows with their middle in an image of a size (H, W)."""
        x, y = self.centers.unbind(1)
        return (x >= 0) & (y >= 0) & (x <= size[1]) & (y <= size[0])


def window_grid(maps: Sequence[torch.Tensor], strides: Sequence[float], cells: int) -> WindowGrid:
    """Windows of so many cells on all places of maps (B, C, h, w) of a pyramid."""
    parts = []
    for level, (level_maps, stride) in enumerate(zip(maps, strides)):
        rows, columns = (
            torch.arange(count, device=level_maps.device)
            for count in window_counts(level_maps.shape[-2:], cells)
        )
        row, column = (index.flatten() for index in torch.meshgrid(rows, columns, indexing="ij"))
        start = (torch.stack([column, row], dim=1) - cells // 2).float() * stride
        boxes = torch.cat([start, start + cells * stride], dim=1)
        parts.append((torch.full_like(row, level), row, column, boxes))
    return WindowGrid(*(torch.cat(part) for part in zip(*parts)))


def by_level(
    function: Callable[..., torch.Tensor], levels: Sequence, windows: Windows
) -> torch.Tensor:
    """Applies ``function(level, image, row, column)`` to the windows of each level; results in the windows' order."""
    found, places = [], []
    for number, level in enumerate(levels):
        place = torch.nonzero(windows.level == number).squeeze(1)
        found.append(function(level, *(part[place] for part in windows[1:])))
        places.append(place)
    return torch.cat(found)[torch.cat(places).argsort()]


class WindowProposalGenerator(nn.Module, ABC):
    """Scores square windows on every cell of a pyramid of maps, and segments the object in the best of them.

    The papers cut patches: canonical ones, moved and resized within tolerances, as positive, others as negative examples,
    as many of each, and apply the network to whole pictures only afterwards. Here the network sees whole pictures, at all
    scales, also in training; the same tolerances label the windows of the dense grid, and as many positive as negative ones
    are drawn from it. A patch's network would see zeros or mirrored pixels around the patch where this one sees the
    picture, in training as at inference. Positions are multiples of the stride and sizes those of the pyramid: between
    these, random sizes of the picture (``INPUT.MIN_SIZE_TRAIN``) take the place of the papers' jitter.

    Masks are made for the windows with the best scores alone. What Detectron2's mappers leave out, as crowds, counts as
    background, as it does for the RPN. Masks are learned from ``gt_masks``, or where the data have none from filled boxes.
    """

    dataset_mapper_name = "PixelLabelMapper"

    def __init__(
        self,
        *,
        in_features: Sequence[str],
        strides: Sequence[float],
        window: int,
        tolerances: WindowTolerances,
        batch_size_per_image: int,
        pre_nms_topk: int,
        post_nms_topk_train: int,
        post_nms_topk_test: int,
        nms_threshold: float,
        min_box_size: float,
        mask_threshold: float,
        proposal_mask_size: int,
        masks_in_training: bool = False,
    ):
        """
        Args:
            in_features: maps of the pyramid.
            strides: theirs, in pixels of the picture.
            window: cells of a window, each way, on every map.
            tolerances: which windows show an object.
            batch_size_per_image: windows to train on; at most half of them positive.
            pre_nms_topk: windows of an image, over all scales, that are segmented.
            post_nms_topk_train, post_nms_topk_test: the best proposals of an image that remain. 0 in training: none are
                made, for a network without regions.
            nms_threshold: IoU of boxes with a better proposal's above which one is dropped; 1: none is.
            min_box_size: proposals with a shorter side, pixels, are dropped.
            mask_threshold: probability from which on a cell belongs to the object.
            proposal_mask_size: M of the proposal masks.
            masks_in_training: there are masks in training, too.
        """
        super().__init__()
        self.in_features = list(in_features)
        self.strides = list(strides)
        self.window = window
        self.tolerances = tolerances
        self.batch_size_per_image = batch_size_per_image
        self.pre_nms_topk = pre_nms_topk
        self.post_nms_topk = {True: post_nms_topk_train, False: post_nms_topk_test}
        self.nms_threshold = nms_threshold
        self.min_box_size = min_box_size
        self.mask_threshold = mask_threshold
        self.proposal_mask_size = proposal_mask_size
        self.masks_in_training = masks_in_training

    @staticmethod
    def window_arguments(cfg: CfgNode, key: str, input_shape: Dict[str, ShapeSpec]) -> dict:
        """Arguments of this class, from the keys of a node ``MODEL.{key}``."""
        check_config(cfg, f"MODEL.{key}", "MODEL.RPE")
        node = cfg.MODEL[key]
        if not node.IN_FEATURES:
            raise ValueError(f"MODEL.{key}.IN_FEATURES is []; allowed: one or more maps")
        names = chosen_features(f"MODEL.{key}.IN_FEATURES", node.IN_FEATURES, input_shape)
        channels = {name: input_shape[name].channels for name in names}
        if len(set(channels.values())) > 1:
            raise ValueError(
                f"MODEL.{key}.IN_FEATURES: {', '.join(f'{n} has {c} channels' for n, c in channels.items())}; "
                "allowed: maps with the same number, as all share one network"
            )
        for limit in ("SHIFT", "SCALE"):
            positive, negative = node[f"POSITIVE_{limit}"], node[f"NEGATIVE_{limit}"]
            if positive >= negative:
                raise ValueError(
                    f"MODEL.{key}.POSITIVE_{limit} is {positive}; allowed: below NEGATIVE_{limit}, {negative}"
                )
        strides = [input_shape[name].stride for name in names]
        _warn_of_gaps(key, strides, node)
        return {
            "in_features": names,
            "strides": strides,
            "window": node.WINDOW,
            "tolerances": WindowTolerances(
                node.OBJECT_SIZE,
                node.POSITIVE_SHIFT,
                node.POSITIVE_SCALE,
                node.NEGATIVE_SHIFT,
                node.NEGATIVE_SCALE,
            ),
            "batch_size_per_image": node.BATCH_SIZE_PER_IMAGE,
            "pre_nms_topk": node.PRE_NMS_TOPK,
            "post_nms_topk_train": node.POST_NMS_TOPK_TRAIN,
            "post_nms_topk_test": node.POST_NMS_TOPK_TEST,
            "nms_threshold": node.NMS_THRESH,
            "min_box_size": cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE,
            "mask_threshold": node.MASK_THRESHOLD,
            "proposal_mask_size": cfg.MODEL.RPE.PROPOSAL_MASK_SIZE,
            "masks_in_training": cfg.MODEL.PROPOSAL_GENERATOR.MASKS_IN_TRAINING,
        }

    @abstractmethod
    def pyramid(self, features: Dict[str, torch.Tensor]) -> List:
        """What windows are read from, level by level."""

    @abstractmethod
    def window_codes(self, level) -> torch.Tensor:
        """Codes (B, D, rows, columns) of all windows of a level of :meth:`pyramid`, without padding."""

    @abstractmethod
    def scores(self, codes: torch.Tensor) -> torch.Tensor:
        """(N,) logits that codes (N, D) are of windows that show an object."""

    @abstractmethod
    def masks(self, pyramid: List, codes: torch.Tensor, windows: Windows) -> torch.Tensor:
        """(N, m, m) logits of the object in each window, whose codes are (N, D)."""

    @abstractmethod
    def losses(
        self,
        scores: torch.Tensor,
        masks: torch.Tensor,
        positive: torch.Tensor,
        targets: torch.Tensor,
    ) -> Dict[str, torch.Tensor]:
        """Losses by name; arguments as of :func:`rpe_d2.baselines.window_loss.window_losses`, targets in 0-1."""

    def sampled_codes(self, pyramid: List, windows: Windows) -> torch.Tensor:
        """Codes (N, D) of some windows: as :meth:`window_codes` has them, for less."""
        levels = [self.window_codes(level) for level in pyramid]
        return by_level(_read_codes, levels, windows)

    def forward(
        self,
        images: ImageList,
        features: Dict[str, torch.Tensor],
        gt_instances: Optional[List[Instances]] = None,
    ) -> Tuple[List[Instances], Dict[str, torch.Tensor]]:
        """
        Args:
            images: padded batch; only its images' sizes are used.
            features: the backbone's maps.
            gt_instances: in training, one per image.

        Returns:
            for each image ``proposal_boxes`` and ``objectness_logits`` and, at inference or where they are wanted in
            training, ``proposal_masks`` (R, M, M) uint8, by falling score; and in training the losses.
        """
        grid = window_grid([features[n] for n in self.in_features], self.strides, self.window)
        pyramid = self.pyramid(features)
        losses = {}
        if self.training:
            if gt_instances is None:
                raise ValueError(
                    'the batch has no "instances" to train on; an image without objects needs an empty list of '
                    '"annotations"'
                )
            losses = self._losses(pyramid, grid, gt_instances)
        return self._proposals(pyramid, grid, images.image_sizes), losses

    def _losses(
        self, pyramid: List, grid: WindowGrid, gt_instances: List[Instances]
    ) -> Dict[str, torch.Tensor]:
        labels = torch.stack([self.label(grid, truth) for truth in gt_instances])  # (B, A)
        image, index = self._sample(labels)
        windows = grid.of(image, index)
        codes = self.sampled_codes(pyramid, windows)
        positive = labels[image, index] >= 0
        shown = Windows(*(part[positive] for part in windows))
        masks = self.masks(pyramid, codes[positive], shown)
        targets = [
            object_masks(
                truth,
                labels[number, index[positive & (image == number)]],
                grid.boxes[index[positive & (image == number)]],
                masks.shape[-1],
            )
            for number, truth in enumerate(gt_instances)
        ]
        # Sampled windows come image by image, as the targets do.
        return self.losses(self.scores(codes), masks, positive, torch.cat(targets))

    @torch.no_grad()
    def label(self, grid: WindowGrid, truth: Instances) -> torch.Tensor:
        """(A,) int64: the row of the object that a window shows, NEGATIVE or IGNORED, as outside of the image."""
        sides = grid.boxes[:, 2] - grid.boxes[:, 0]
        labels = label_windows(grid.centers, sides, truth.gt_boxes.tensor, self.tolerances)
        return labels.masked_fill(~grid.centered_in(truth.image_size), IGNORED)

    def _sample(self, labels: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """As many positive as negative windows of a batch, and one negative of an image at least, image by image.

        Args:
            labels: (B, A).

        Returns:
            (N,) images and (N,) windows of the grid.
        """
        most = max(self.batch_size_per_image // 2, 1)
        ranks = torch.rand(labels.shape, device=labels.device)
        positive = _lowest(ranks, labels >= 0, most)
        count = int(positive.sum())
        # Negatives of the whole batch: images without objects have their share in them.
        share = max(-(-count // len(labels)), 1)
        negative = _lowest(ranks, labels == NEGATIVE, share)
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
        )  # (B, A), as the grid has them
        proposals = []
        for number, size in enumerate(image_sizes):
            inside = grid.centered_in(size)
            own = scores[number].float().masked_fill(~inside, -torch.inf)
            best = own.topk(min(self.pre_nms_topk, int(inside.sum()))).indices
            windows = grid.of(torch.full_like(best, number), best)
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


def object_masks(
    truth: Instances, owner: torch.Tensor, boxes: torch.Tensor, size: int
) -> torch.Tensor:
    """(P, size, size) float32: shares of the cells of boxes (P, 4) that their objects, rows (P,) of ``truth``, cover."""
    if len(owner) == 0:
        return boxes.new_zeros(0, size, size)
    masks = instance_masks(truth)[:, None].to(boxes)
    regions = torch.cat([owner[:, None].to(boxes), boxes], dim=1)
    return roi_align(masks, regions, size, aligned=True)[:, 0]


def _read_codes(
    codes: torch.Tensor, image: torch.Tensor, row: torch.Tensor, column: torch.Tensor
) -> torch.Tensor:
    return codes[image, :, row, column]


def _lowest(ranks: torch.Tensor, allowed: torch.Tensor, count: int) -> torch.Tensor:
    """(B, A) bool: of each row the allowed ones with the lowest ranks, at most ``count``."""
    ranks = ranks.masked_fill(~allowed, torch.inf)
    limit = ranks.kthvalue(min(count, ranks.shape[1]), dim=1, keepdim=True).values
    return allowed & (ranks <= limit)


def _no_proposals(size: Tuple[int, int], boxes: torch.Tensor) -> Instances:
    return Instances(
        tuple(size), proposal_boxes=Boxes(boxes[:0]), objectness_logits=boxes.new_zeros(0)
    )


def _warn_of_gaps(key: str, strides: Sequence[float], node: CfgNode) -> None:
    sizes = sorted(node.OBJECT_SIZE * node.WINDOW * stride for stride in strides)
    for small, large in zip(sizes, sizes[1:]):
        if math.log2(large / small) > 2 * node.POSITIVE_SCALE + 0.01:
            logger.warning(
                "MODEL.%s.IN_FEATURES: objects of %.0f and of %.0f pixels are canonical, and nothing learns of those "
                "between: add a scale, or set MODEL.%s.POSITIVE_SCALE to %.2f",
                key, small, large, key, math.log2(large / small) / 2,
            )  # fmt: skip
