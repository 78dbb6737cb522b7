"""Scene labeling with a recurrent network that corrects its own predictions."""

import math
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import nn
from torch.nn import functional as F

from rpe_d2.modeling.argument_checks import check_range
from rpe_d2.modeling.layers import chosen_features, enlarge_maps, normalized_conv, resize_maps
from rpe_d2.modeling.sem_seg.sem_seg_head import SemSegHead, SemSegMaps, pixel_predictor

from .recurrent_patches import RecurrentPatches, scales_of

_STRIDE = 2  # of a pass, in pixels of its resized image
_FIRST_KERNEL = 5
_SCALES = tuple(2.0**-n for n in range(8))


@SEM_SEG_HEADS_REGISTRY.register()
class RecurrentConvSemSegHead(SemSegHead):
    """Applies one network several times (Pinheiro & Collobert, ICML 2014, section 3.3).

    Each pass takes the resized image together with the logits of the pass before, which are zeros
    at first. All passes share their weights and each one has a loss.

    ``MODEL.SEM_SEG_HEAD.RECURRENT_NETWORK`` selects a network of the authors. It sees the image
    alone (``IN_FEATURES: [image]``), and its passes go from fine to coarse. At inference there is a
    prediction for every pixel, from the patch around it; see :class:`RecurrentPatches`. In training
    there is one for every stride-th pixel, from a random pixel on, because the patches of these
    pixels share most of the computation. The authors draw single patches.

    Otherwise the network is this project's. Other feature maps of the backbone are resized and
    concatenated like the image. The image sizes are free (``RECURRENT_SCALES``), and by default go
    from coarse to fine, so the last pass is dense.
    """

    @configurable
    def __init__(
        self,
        input_shape: Dict[str, ShapeSpec],
        *,
        num_classes: int,
        in_features: Sequence[str] = (),
        scales: Sequence[float] = (0.125, 0.25, 0.5, 1.0),
        conv_dim: int = 128,
        num_convs: int = 2,
        norm: str = "GN",
        patches: Optional[RecurrentPatches] = None,
        **kwargs: Any,
    ):
        """
        Args:
            input_shape: channels and stride of the feature maps.
            num_classes: number of classes.
            in_features: the feature maps to use, whose strides are integers; all if empty.
            scales: size of the resized image in each pass, 1 / 2 ** n.
            conv_dim: channels of the convolutions.
            num_convs: 3x3 convolutions of a pass after its first convolution, 5x5 with stride 2.
            norm: normalization of each convolution, any of Detectron2's ``get_norm``; "" for none.
                Batch statistics would differ between the passes.
            patches: a network of the authors, which needs one feature map of stride 1, the image.
                Scales, convolutions and norm then have no effect.
            kwargs: see :class:`SemSegHead`. The losses apply to each pass.
        """
        check_range("num_classes", num_classes, 1)
        check_range("conv_dim", conv_dim, 1)
        check_range("num_convs", num_convs, 0)
        names = chosen_features("in_features", in_features, input_shape)
        if patches is not None:
            _check_image("in_features", names, input_shape)
            super().__init__(common_stride=1, **kwargs)
            _check_no_pair_loss("pair_loss", self.pair_loss)
            self.image_feature = names[0]
            self.patches = patches
            return
        _check_scales("scales", scales)
        _check_strides("in_features", names, input_shape)
        super().__init__(common_stride=round(_STRIDE / scales[-1]), **kwargs)
        self.patches = None
        self.strides = {name: input_shape[name].stride for name in names}
        self.scales = tuple(scales)
        # Images of multiples of this size have an integer number of cells in every pass.
        self.whole_size = math.lcm(
            *self.strides.values(), *(round(_STRIDE / scale) for scale in scales)
        )
        self.num_classes = num_classes
        in_channels = sum(input_shape[name].channels for name in names) + num_classes
        convs = [normalized_conv(in_channels, conv_dim, _FIRST_KERNEL, norm, _STRIDE)]
        convs += [normalized_conv(conv_dim, conv_dim, 3, norm) for _ in range(num_convs)]
        self.network = nn.Sequential(*convs)
        self.predictor = pixel_predictor(conv_dim, num_classes)
        self.embedding = self.pair_loss and pixel_predictor(conv_dim, self.pair_loss.embedding_dim)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]):
        head = cfg.MODEL.SEM_SEG_HEAD
        key = "MODEL.SEM_SEG_HEAD.IN_FEATURES"
        names = chosen_features(key, head.IN_FEATURES, input_shape)
        shared = cls.shared_options(cfg)
        patches = None
        if head.RECURRENT_NETWORK:
            _check_image(key, names, input_shape)
            _check_no_pair_loss("MODEL.SEM_SEG_HEAD.PAIR_LOSS_WEIGHT", shared["pair_loss"])
            _check_scales_of_network(head.RECURRENT_NETWORK, head.RECURRENT_SCALES)
            patches = RecurrentPatches(
                head.RECURRENT_NETWORK,
                head.NUM_CLASSES,
                len(head.RECURRENT_SCALES),
                input_shape[names[0]].channels,
            )
        else:
            _check_scales("MODEL.SEM_SEG_HEAD.RECURRENT_SCALES", head.RECURRENT_SCALES)
            _check_strides(key, names, input_shape)
        return {
            "input_shape": input_shape,
            "in_features": names,
            "scales": head.RECURRENT_SCALES,
            "conv_dim": head.CONVS_DIM,
            "num_convs": head.NUM_CONVS,
            "norm": head.NORM,
            "patches": patches,
            **shared,
        }

    def predict(self, features: Dict[str, torch.Tensor]) -> SemSegMaps:
        if self.patches is None:
            return self.passes(features)[-1]
        return SemSegMaps(self.patches(features[self.image_feature])[-1], None, 1)

    def passes(self, features: Dict[str, torch.Tensor]) -> List[SemSegMaps]:
        """Computes the predictions of every pass, on grids of 2 / scale pixels.

        The maps are padded with zeros to the same size in pixels, a multiple of all grids, so cells
        keep their position in the image regardless of its size. The results are cropped to the
        cells of the image.
        """
        finest = min(self.strides, key=self.strides.get)
        pixels = [side * self.strides[finest] for side in features[finest].shape[-2:]]
        padded = [-(-side // self.whole_size) * self.whole_size for side in pixels]
        maps = [
            _pad(features[name], [side // stride for side in padded])
            for name, stride in self.strides.items()
        ]
        results: List[SemSegMaps] = []
        scores = None
        for scale in self.scales:
            size = [round(side * scale) for side in padded]
            inputs = [resize_maps(part, size) for part in maps]
            if scores is None:
                inputs.append(inputs[0].new_zeros(len(inputs[0]), self.num_classes, *size))
            else:
                inputs.append(resize_maps(scores, size))
            x = self.network(torch.cat(inputs, dim=1))
            scores = self.predictor(x)
            stride = round(_STRIDE / scale)
            rows, columns = (-(-side // stride) for side in pixels)
            embeds = self.training and self.embedding is not None
            embeddings = self.embedding(x[..., :rows, :columns]) if embeds else None
            results.append(SemSegMaps(scores[..., :rows, :columns], embeddings, stride))
        return results

    def scores_and_losses(
        self, features: Dict[str, torch.Tensor], targets: torch.Tensor
    ) -> Tuple[torch.Tensor, Dict[str, torch.Tensor]]:
        """Computes logits and losses as :class:`SemSegHead` does, with losses for every pass.

        The losses of the passes before the last are called "loss_sem_seg_pass1" and so on.
        """
        if self.patches is None:
            passes = self.passes(features)
        else:
            size, grid = targets.shape[-2:], self.patches.stride
            row, column = (int(torch.randint(min(grid, side), ())) for side in size)
            image = features[self.image_feature]
            scores = self.patches(image, grid, (row, column))
            passes = [SemSegMaps(one, None, 1) for one in scores]
            targets = targets[:, row::grid, column::grid]
        *earlier, last = passes
        losses = self.map_losses(last, targets)
        for number, maps in enumerate(earlier, start=1):
            for name, loss in self.map_losses(maps, targets).items():
                losses[f"{name}_pass{number}"] = loss
        if self.patches is None:
            return last.scores, losses
        return enlarge_maps(last.scores, grid, size), losses


def _check_scales(option: str, scales: Sequence[float]) -> None:
    if not scales or any(scale not in _SCALES for scale in scales):
        raise ValueError(f"{option} is {list(scales)}; allowed: one or more of 1, 0.5, 0.25 ...")


def _check_scales_of_network(name: str, scales: Sequence[float]) -> None:
    expected = scales_of(name, max(1, len(scales)))
    if list(scales) != expected:
        more = ", ".join(f"{scale:g}" for scale in scales_of(name, 3))
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.RECURRENT_SCALES is {list(scales)}; allowed with "
            f"RECURRENT_NETWORK {name}: the first ones of {more} …"
        )


def _check_image(option: str, names: Sequence[str], input_shape: Dict[str, ShapeSpec]) -> None:
    if len(names) != 1 or input_shape[names[0]].stride != 1:
        raise ValueError(
            f"{option} is {', '.join(names)}; allowed with the networks of Pinheiro & Collobert "
            "(RECURRENT_NETWORK): one map of stride 1, the image"
        )


def _check_no_pair_loss(option: str, pair_loss: Optional[nn.Module]) -> None:
    if pair_loss is not None:
        raise ValueError(
            f"{option} asks for a pair loss; the networks of Pinheiro & Collobert "
            "(RECURRENT_NETWORK) have none, allowed: 0"
        )


def _check_strides(option: str, names: Sequence[str], input_shape: Dict[str, ShapeSpec]) -> None:
    for name in names:
        stride = input_shape[name].stride
        if stride % 1:
            raise ValueError(
                f"{option}: {name} has the stride {stride:g}; "
                "allowed with RecurrentConvSemSegHead: integers"
            )


def _pad(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Pads maps (B, C, h, w) to a size with zeros below and to the right."""
    rows, columns = (side - own for side, own in zip(size, maps.shape[-2:]))
    return F.pad(maps, (0, columns, 0, rows))
