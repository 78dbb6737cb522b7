"""Scene labelling by a network that corrects its own scores."""

import math
from typing import Dict, List, Optional, Sequence, Tuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import nn
from torch.nn import functional as F

from rpe_d2.modeling.embedding.pixel_losses import SemanticPairLoss
from rpe_d2.modeling.layers import chosen_features, normalized_conv, resize_maps
from rpe_d2.modeling.sem_seg.sem_seg_head import SemSegHead, SemSegMaps, pixel_predictor

_STRIDE = 2  # of a pass, in pixels of its rescaled picture
_FIRST_KERNEL = 5


@SEM_SEG_HEADS_REGISTRY.register()
class RecurrentConvSemSegHead(SemSegHead):
    """One network applied several times (Pinheiro & Collobert, ICML 2014, section 3.3).

    Each pass takes the picture rescaled, and the class scores of the pass before, zeros at first, in one stack. All
    share their weights, and each has a loss. ``MODEL.SEM_SEG_HEAD.IN_FEATURES: [image]`` is the authors' input; maps
    of the backbone that are named beside it are rescaled and stacked like the picture.

    The authors go from fine to coarse and get a score per pixel by shifting the picture. Here sizes are free
    (``MODEL.SEM_SEG_HEAD.RECURRENT_SCALES``), from coarse to fine by default: the last pass is dense already.
    """

    @configurable
    def __init__(
        self,
        input_shape: Dict[str, ShapeSpec],
        *,
        scales: Sequence[float],
        conv_dim: int,
        num_convs: int,
        norm: str,
        num_classes: int,
        ignore_value: int,
        loss_weight: float,
        pair_loss: Optional[SemanticPairLoss],
    ):
        """
        Args:
            input_shape: channels and stride of the maps, whole pixels.
            scales: sizes of the rescaled picture in each pass, 1 / 2 ** n.
            conv_dim: channels of the convolutions.
            num_convs: 3x3 convolutions of a pass after its first, 5x5 of stride 2.
            norm: after each, any of Detectron2's, "" for none; statistics of a batch would differ between the passes.
            num_classes: K.
            ignore_value, loss_weight, pair_loss: of :class:`SemSegHead`; each pass has these losses.
        """
        super().__init__(
            common_stride=round(_STRIDE / scales[-1]),
            ignore_value=ignore_value,
            loss_weight=loss_weight,
            pair_loss=pair_loss,
        )
        self.strides = {name: shape.stride for name, shape in input_shape.items()}
        self.scales = tuple(scales)
        # Maps of pictures of such sizes have whole cells in every pass.
        self.whole_size = math.lcm(
            *self.strides.values(), *(round(_STRIDE / scale) for scale in scales)
        )
        self.num_classes = num_classes
        in_channels = sum(shape.channels for shape in input_shape.values()) + num_classes
        convs = [normalized_conv(in_channels, conv_dim, _FIRST_KERNEL, norm, _STRIDE)]
        convs += [normalized_conv(conv_dim, conv_dim, 3, norm) for _ in range(num_convs)]
        self.network = nn.Sequential(*convs)
        self.predictor = pixel_predictor(conv_dim, num_classes)
        self.embedding = pair_loss and pixel_predictor(conv_dim, pair_loss.embedding_dim)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]):
        head = cfg.MODEL.SEM_SEG_HEAD
        key = "MODEL.SEM_SEG_HEAD.IN_FEATURES"
        names = chosen_features(key, head.IN_FEATURES, input_shape)
        scales = list(head.RECURRENT_SCALES)
        allowed = [2.0**-n for n in range(8)]
        if not scales or any(scale not in allowed for scale in scales):
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.RECURRENT_SCALES is {scales}; allowed: one or more of 1, 0.5, 0.25 ..."
            )
        broken = [name for name in names if input_shape[name].stride % 1]
        if broken:
            raise ValueError(
                f"{key}: {broken[0]} has the stride {input_shape[broken[0]].stride:g}; RecurrentConvSemSegHead allows "
                "whole pixels"
            )
        return {
            "input_shape": {name: input_shape[name] for name in names},
            "scales": scales,
            "conv_dim": head.CONVS_DIM,
            "num_convs": head.NUM_CONVS,
            "norm": head.NORM,
            **cls.shared_options(cfg),
        }

    def predict(self, features: Dict[str, torch.Tensor]) -> SemSegMaps:
        return self.passes(features)[-1]

    def passes(self, features: Dict[str, torch.Tensor]) -> List[SemSegMaps]:
        """What every pass predicts, on grids of 2 / scale pixels.

        Maps are padded by zeros to the same size in pixels, a multiple of all grids: cells stay where they are in the
        picture whatever its size. Results are cut to the cells of the picture.
        """
        finest = min(self.strides, key=self.strides.get)
        pixels = [side * self.strides[finest] for side in features[finest].shape[-2:]]
        padded = [-(-side // self.whole_size) * self.whole_size for side in pixels]
        maps = [
            _padded(features[name], [side // stride for side in padded])
            for name, stride in self.strides.items()
        ]
        found: List[SemSegMaps] = []
        scores = None
        for scale in self.scales:
            size = [round(side * scale) for side in padded]
            seen = [resize_maps(part, size) for part in maps]
            if scores is None:
                seen.append(seen[0].new_zeros(len(seen[0]), self.num_classes, *size))
            else:
                seen.append(resize_maps(scores, size))
            x = self.network(torch.cat(seen, dim=1))
            scores = self.predictor(x)
            stride = round(_STRIDE / scale)
            rows, columns = (-(-side // stride) for side in pixels)
            embeds = self.training and self.embedding is not None
            embeddings = self.embedding(x[..., :rows, :columns]) if embeds else None
            found.append(SemSegMaps(scores[..., :rows, :columns], embeddings, stride))
        return found

    def scores_and_losses(
        self, features: Dict[str, torch.Tensor], targets: torch.Tensor
    ) -> Tuple[torch.Tensor, Dict[str, torch.Tensor]]:
        """As :class:`SemSegHead`; losses of the passes before the last are called "loss_sem_seg_pass1" and so on."""
        *earlier, last = self.passes(features)
        losses = self.map_losses(last, targets)
        for number, maps in enumerate(earlier, start=1):
            for name, loss in self.map_losses(maps, targets).items():
                losses[f"{name}_pass{number}"] = loss
        return last.scores, losses


def _padded(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """(B, C, h, w) with zeros below and to the right, of a size that is at least theirs."""
    rows, columns = (side - own for side, own in zip(size, maps.shape[-2:]))
    return F.pad(maps, (0, columns, 0, rows))
