"""Spatial embeddings with learned bandwidths and seeds of Neven et al. (CVPR 2019)."""

import math
from typing import Dict, NamedTuple, Optional, Tuple, Union

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import nn

from rpe_d2.ops.seeds import spatial_seeds
from rpe_d2.ops.spatial_loss import spatial_kernel, spatial_loss

from ...argument_checks import check_choice, check_positive, check_range
from ..grouping import PixelGrouping
from ..head import EmbeddingHead, EmbeddingMaps, ImageMaps
from ..labels import PixelLabels
from ..pixel_groups import SoftMasks
from .method import EmbeddingMethod
from .method_loss import MethodLoss

# Bandwidths of an ellipse along the axes, rather than one of a circle.
_NUM_BANDWIDTHS = 2
# Largest offset in pixels, as MODEL.RPE.MAX_SIZE has it by default.
_UNIT = 256.0
# Pixels from the center at which the kernel of an untrained network is 0.5.
_INITIAL_RADIUS = 8.0


class SpatialMaps(NamedTuple):
    """Predictions at N pixels of one image, with positions in units of the largest offset.

    Attributes:
        positions: (N, 2) positions that the pixels point to.
        bandwidths: (N, 1 or 2) see :func:`rpe_d2.ops.spatial_loss.spatial_kernel`.
        seeds: (N,) seed scores in 0 to 1.
        pixels: (N, 2) the pixels' own positions.
    """

    positions: torch.Tensor
    bandwidths: torch.Tensor
    seeds: torch.Tensor
    pixels: torch.Tensor


def spatial_maps(maps: Union[ImageMaps, EmbeddingMaps], index: int, unit: float) -> SpatialMaps:
    """Reads the predictions of all cells of one image.

    Offsets are the tanh of the network's embedding times the unit, and the seed score is the last
    of the extra predictions, behind a sigmoid.

    Args:
        maps: predictions for an image, or for a batch.
        index: the image of a batch; not used for an image.
        unit: largest offset in pixels.
    """
    parts = maps.embeddings, maps.extra, maps.votes
    if isinstance(maps, EmbeddingMaps):
        parts = tuple(part[index] for part in parts)
    # Without votes, these are the centers of the cells.
    offsets, extra, centers = (part.flatten(1).T for part in parts)
    pixels = centers / unit
    return SpatialMaps(pixels + offsets.tanh(), extra[:, :-1], extra[:, -1].sigmoid(), pixels)


class SpatialLoss(MethodLoss):
    """Loss of masks, bandwidths and seed scores on all cells of the maps, see the operator.

    :func:`rpe_d2.ops.spatial_loss.spatial_loss` computes it. The weights are those of the authors'
    release, whose configuration for cars has circles and centroids. Here, as in the best rows of
    the paper, bandwidths are elliptical and centers are learned. The paper predicts one seed map
    for each class; here there is one for all classes, and the class scores of pixels tell the
    class.
    """

    term_weights = {"mask": 1.0, "bandwidth": 10.0, "seed": 1.0}

    @configurable
    def __init__(
        self,
        *,
        unit: float = _UNIT,
        num_bandwidths: int = _NUM_BANDWIDTHS,
        learn_centers: bool = True,
        foreground_weight: float = 10.0,
        **options,
    ):
        """
        Args:
            unit: largest offset in pixels. The paper's is 1,024 for images of 1,024 rows.
            num_bandwidths: 1 for circles, 2 for ellipses.
            learn_centers: whether the center of an instance is the mean of where its pixels point
                to, rather than its centroid.
            foreground_weight: weight of pixels of instances in the loss of the seed scores.
            options: arguments of :class:`MethodLoss`.

        Raises:
            ValueError: An argument is out of range.
        """
        super().__init__(**options)
        check_positive("unit", unit)
        check_choice("num_bandwidths", num_bandwidths, (1, 2))
        check_range("foreground_weight", foreground_weight, 0)
        self.unit = unit
        self.num_bandwidths = num_bandwidths
        self.learn_centers = learn_centers
        self.foreground_weight = foreground_weight

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Dict:
        return {**super().from_config(cfg), "unit": cfg.MODEL.RPE.MAX_SIZE}

    def default_grouping(self) -> PixelGrouping:
        return SpatialGrouping(unit=self.unit)

    def extra_dim(self, num_classes: int) -> int:
        return self.num_bandwidths + 1

    def check_head(self, head: EmbeddingHead) -> None:
        super().check_head(head)
        self._check_dim(head, 2)

    def _image_terms(
        self, maps: EmbeddingMaps, index: int, labels: PixelLabels
    ) -> Dict[str, torch.Tensor]:
        positions, bandwidths, seeds, pixels = spatial_maps(maps, index, self.unit)
        terms = spatial_loss(
            positions,
            bandwidths,
            seeds,
            labels.at_cells(maps.stride).flatten(),
            center_positions=None if self.learn_centers else pixels,
            foreground_weight=self.foreground_weight,
        )
        return terms._asdict()


class SpatialGrouping(PixelGrouping):
    """Grouping by the kernels of seeds (section 3 of the paper).

    The pixel with the highest seed score gives the center and the bandwidth of a mask. The pixels
    of the mask are no seeds any more, and so on until no seed score exceeds 0.5. An instance is
    scored by its seed times the class probability of its pixels.
    """

    ranks_by_agreement = True

    def __init__(
        self,
        *,
        unit: float = _UNIT,
        min_seediness: float = 0.5,
        min_area: float = 16,
        max_groups: int = 500,
    ):
        """
        Args:
            unit: largest offset in pixels, that of the loss.
            min_seediness: seeds have a higher score.
            min_area: smallest area of a group in pixels of the image.
            max_groups: largest number of groups.

        Raises:
            ValueError: An argument is out of range.
        """
        super().__init__(min_area=min_area, max_groups=max_groups)
        check_positive("unit", unit)
        check_range("min_seediness", min_seediness, 0, 1)
        self.unit = unit
        self.min_seediness = min_seediness

    def _soft_masks(
        self, maps: ImageMaps, probability: torch.Tensor, num_instances: Optional[int]
    ) -> Tuple[SoftMasks, torch.Tensor]:
        spatial = spatial_maps(maps, 0, self.unit)
        seediness = spatial.seeds * maps.valid.flatten()
        seeds = spatial_seeds(
            spatial.positions,
            spatial.bandwidths,
            seediness,
            self.max_groups,
            min_seediness=self.min_seediness,
            min_pixels=self.min_area / maps.stride**2,
        )
        return KernelMasks(spatial, seeds, maps.valid), seediness[seeds]


class KernelMasks(SoftMasks):
    """The kernels of seeds, at most the seed score of each pixel.

    As in the authors' release, pixels with a kernel or a seed score below 0.5 are in no mask.
    """

    def __init__(self, spatial: SpatialMaps, seeds: torch.Tensor, valid: torch.Tensor):
        """
        Args:
            spatial: predictions at all cells.
            seeds: (R,) int64 indices of the seeds.
            valid: (h, w) float32: 1 in cells of the image, 0 in padding.
        """
        self._spatial, self._seeds, self._valid = spatial, seeds, valid
        self.size = valid.shape

    def __len__(self) -> int:
        return len(self._seeds)

    def __getitem__(self, index: torch.Tensor) -> torch.Tensor:
        seeds = self._seeds[index][:, None]  # (n, 1)
        positions, bandwidths = self._spatial.positions, self._spatial.bandwidths
        phi = spatial_kernel(positions, positions[seeds], bandwidths[seeds])  # (n, h * w)
        return torch.minimum(phi, self._spatial.seeds).view(-1, *self.size) * self._valid


class SpatialMethod(EmbeddingMethod):
    """Offsets to the center of the instance, its bandwidths and a seed score."""

    unused_keys = (
        *(key for key in EmbeddingMethod.unused_keys if key != "MODEL.RPE.MAX_SIZE"),
        "MODEL.RPE.EMBEDDING_DIM",
        "MODEL.RPE.TRAIN_POINTS",
        "MODEL.RPE.SAMPLING",
        "MODEL.RPE.FOREGROUND_THRESHOLD",
        "MODEL.RPE.SPLIT_COMPONENTS",
    )

    def build_head(self, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]) -> EmbeddingHead:
        head = EmbeddingHead(
            cfg,
            input_shape,
            embedding_dim=2,
            vote_unit=None,
            max_size=None,
            normalize=False,
            extra_dim=_NUM_BANDWIDTHS + 1,
        )
        start_small(head, cfg.MODEL.RPE.MAX_SIZE)
        return head

    def build_loss(self, cfg: CfgNode) -> SpatialLoss:
        return SpatialLoss(cfg)

    def _grouping(self, cfg: CfgNode, limits: Dict[str, float]) -> PixelGrouping:
        return SpatialGrouping(unit=cfg.MODEL.RPE.MAX_SIZE, **limits)


@torch.no_grad()
def start_small(head: EmbeddingHead, unit: float = _UNIT) -> None:
    """Initializes a head such that pixels point to themselves, in circles of a few pixels.

    As in the authors' release, masks are neither empty nor the whole image at first.

    Args:
        head: a head for :class:`SpatialLoss`.
        unit: largest offset in pixels.
    """
    # exp(-r^2 exp(10 b)) = 1 / 2 at the initial radius r in units
    bandwidth = math.log(math.log(2) * (unit / _INITIAL_RADIUS) ** 2) / 10
    offsets, extra = head.embedding[-1], head.extra[-1]
    nn.init.zeros_(offsets.weight)
    nn.init.zeros_(offsets.bias)
    nn.init.zeros_(extra.weight[:-1])
    nn.init.constant_(extra.bias[:-1], bandwidth)
