"""Refinement of the masks of any model by spatial propagation."""

from typing import Dict, List, Optional, Sequence, Tuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.backbone import Backbone
from detectron2.structures import BitMasks, Instances
from torch.nn import functional as F

from rpe_d2.config import check_config
from rpe_d2.ops.coarsen import coarsen_masks

from ..argument_checks import check_range
from ..class_propagation import ClassPropagation
from ..embedding.labels import instance_masks
from ..embedding.loss import mean_cross_entropy
from ..layers import resize_maps, zero_loss
from ..masks import masks_on_grid, upsample_masks
from ..sparse_propagation import SparsePropagation, nearest_cells
from ..spn import (
    MaskPropagation,
    log_probabilities,
    propagation_loss,
    suppress_absent_classes,
)
from .padded_input import PIXEL_MEAN, PIXEL_STD, PaddedInput

# The networks by MODEL.SPN.NETWORK: the argument of SPNRefiner and the class.
_NETWORKS = {
    "masks": ("mask_propagation", MaskPropagation),
    "classes": ("class_propagation", ClassPropagation),
    "sparse_labels": ("sparse_propagation", SparsePropagation),
    "sparse_color": ("sparse_propagation", SparsePropagation),
}


def _is_sparse(cfg: CfgNode) -> bool:
    return cfg.MODEL.SPN.NETWORK.startswith("sparse")


@META_ARCH_REGISTRY.register()
class SPNRefiner(PaddedInput):
    """The universal propagation network, which refines given masks (Liu et al., NIPS 2017, sec. 4).

    The input is Detectron2's list of dicts with ``image`` (C, H, W). In training the dicts have
    ``instances`` with ``gt_masks``, from which coarse masks are made. At inference they have any of
    these, at any resolution:

    * ``instances`` with ``pred_masks`` (R, h, w), bool or in 0-1,
    * ``sem_seg`` (K, h, w), class scores in 0-1,
    * ``sparse_labels`` (K, h, w), 1 where the class of a pixel is known and 0 elsewhere; the labels
      are propagated to all other pixels.

    If the dicts have ``coarse_sem_seg`` (K, H, W), the class probabilities of another network,
    these are refined instead. In training, the target is ``sem_seg`` (H, W). The output is
    ``sem_seg``, in which only classes win that have the highest probability at some pixel of the
    input. ``MODEL.SPN.NETWORK`` "classes" does nothing else, with the network of
    :class:`ClassPropagation`.

    With "sparse_labels" and "sparse_color" it is :class:`SparsePropagation`, which learns to spread
    ``sparse_labels``, with the target ``sem_seg``, or ``sparse_values`` (C, H, W), which are valid
    where ``known`` (H, W) is True, with the target ``values`` (C, H, W). The labels are also output
    as ``sem_seg``, for evaluators.

    A dict may have ``patches`` in training, a list of dicts, which are used instead of it. The
    output dicts have the refined values under the same names, at the size ``height`` x
    ``width``. Refined masks are bool, ``pred_boxes`` are their bounding boxes, and the other fields
    of the instances do not change.
    """

    dataset_mapper_name = "PixelLabelMapper"

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        mask_propagation: Optional[MaskPropagation] = None,
        class_propagation: Optional[ClassPropagation] = None,
        sparse_propagation: Optional[SparsePropagation] = None,
        num_masks: int = 8,
        coarse_factors: Sequence[int] = (4, 2, 8),
        jitter: int = 2,
        loss_weight: float = 1.0,
        ignored_label: int = 255,
        pixel_mean: Sequence[float] = PIXEL_MEAN,
        pixel_std: Sequence[float] = PIXEL_STD,
    ):
        """
        Args:
            backbone: its feature maps guide the propagation.
            mask_propagation: refines the masks; None for the default on all feature maps.
            class_propagation: refines class maps instead of masks.
            sparse_propagation: spreads sparse values instead of refining masks.
            num_masks: largest number of masks per image in training.
            coarse_factors: in training the masks of an image are coarsened by one of these
                factors; see :func:`rpe_d2.ops.coarsen.coarsen_masks`.
            jitter: largest random offset of the coarse masks in x and in y, in pixels.
            loss_weight: weight of the loss.
            ignored_label: value of ``sem_seg`` where the class is not known.
            pixel_mean, pixel_std: mean and standard deviation of each image channel.
        """
        check_range("num_masks", num_masks, 1)
        check_range("jitter", jitter, 0)
        check_range("loss_weight", loss_weight, 0)
        if not coarse_factors or any(not isinstance(f, int) or f < 1 for f in coarse_factors):
            raise ValueError(
                f"coarse_factors is {coarse_factors}; allowed: one or more integers, 1 or more"
            )
        network = class_propagation or sparse_propagation or mask_propagation
        if network is None:
            network = mask_propagation = MaskPropagation(backbone.output_shape())
        super().__init__(backbone, pixel_mean, pixel_std, [network.stride])
        self.mask_propagation = mask_propagation
        self.class_propagation = class_propagation
        self.sparse_propagation = sparse_propagation
        self.ignored_label = ignored_label
        self.num_masks = num_masks
        self.coarse_factors = tuple(coarse_factors)
        self.jitter = jitter
        self.loss_weight = loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode):
        check_config(cfg, "MODEL.SPN")
        backbone = build_backbone(cfg)
        name, network = _NETWORKS[cfg.MODEL.SPN.NETWORK]
        return {
            "backbone": backbone,
            name: network(cfg, backbone.output_shape()),
            "ignored_label": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            "loss_weight": cfg.MODEL.SPN.LOSS_WEIGHT,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @classmethod
    def evaluation_mapper_name(cls, cfg: CfgNode) -> str:
        """Names the mapper that provides what is refined or spread."""
        return "SparsePixelMapper" if _is_sparse(cfg) else "ImageMapper"

    @classmethod
    def inference_inputs(cls, cfg: CfgNode) -> Tuple[str, ...]:
        """Names what the model needs at inference besides images."""
        if _is_sparse(cfg):
            return (cfg.MODEL.SPN.NETWORK,)
        refines_classes = cfg.MODEL.SPN.NETWORK == "classes" or cfg.DATASETS.COARSE_DIRS
        return ("coarse_sem_seg",) if refines_classes else ("coarse_masks",)

    @classmethod
    def check_run(cls, cfg: CfgNode, has_weights: bool) -> None:
        """Raises a ValueError if nothing provides what the network refines or spreads."""
        for name in ("DENSE_CRF", "SUPERPIXELS"):
            if cfg.TEST[name].ENABLED:
                raise ValueError(
                    f"TEST.{name}.ENABLED is True; allowed with SPNRefiner: False, because its "
                    "maps are probabilities and no logits"
                )
        mapper = cfg.INPUT.DATASET_MAPPER_NAME
        if _is_sparse(cfg) and not mapper:
            raise ValueError(
                f"INPUT.DATASET_MAPPER_NAME is {mapper!r}; allowed with MODEL.SPN.NETWORK "
                f"{cfg.MODEL.SPN.NETWORK}: SparsePixelMapper, or one that provides the same"
            )
        if cfg.MODEL.SPN.NETWORK == "classes" and not cfg.DATASETS.COARSE_DIRS:
            raise ValueError(
                "DATASETS.COARSE_DIRS is []; allowed with MODEL.SPN.NETWORK classes: the folders "
                "of the class maps to refine"
            )

    def forward(self, batched_inputs: List[Dict]) -> List[Dict]:
        """
        Returns:
            In training a dict with the scalar "loss_propagation", or "loss_sem_seg" for classes
            and labels, or "loss_values"; otherwise the result of :meth:`inference`.

        Raises:
            ValueError: The model has no propagation units, so there is nothing to train.
        """
        if not self.training:
            return self.inference(batched_inputs)
        batched_inputs = [patch for item in batched_inputs for patch in item.get("patches", [item])]
        if self.sparse_propagation is not None:
            return self._sparse_loss(batched_inputs)
        if self.mask_propagation is not None and self.mask_propagation.units.num_units == 0:
            raise ValueError(
                "MODEL.SPN.NUM_UNITS is 0; allowed in training an SPNRefiner: 1 or more"
            )
        if self._refines_classes(batched_inputs[0]):
            logits, _, _ = self._class_logits(batched_inputs)
            return self._class_loss(logits, batched_inputs)
        gates, _ = self.gates(batched_inputs)
        with torch.autocast(device_type=self.device.type, enabled=False):
            losses = [
                self._loss(item["instances"].to(self.device), gates[index])
                for index, item in enumerate(batched_inputs)
            ]
        return {"loss_propagation": self.loss_weight * sum(losses) / len(losses)}

    def gates(self, batched_inputs: List[Dict]) -> Tuple[torch.Tensor, List[Tuple[int, int]]]:
        """Predicts the gates of a batch.

        Returns:
            Gates (B, 1, 4 x connections, h, w) for the padded images, and the size (H, W) of each
            image.
        """
        images = self.padded([self.normalized(item) for item in batched_inputs])
        return self.mask_propagation.gates(self.backbone(images.tensor)), images.image_sizes

    def _refines_classes(self, item: Dict) -> bool:
        return self.class_propagation is not None or "coarse_sem_seg" in item

    def _class_logits(
        self, batched_inputs: List[Dict]
    ) -> Tuple[torch.Tensor, torch.Tensor, List[Tuple[int, int]]]:
        """Refines the class maps of a batch.

        Returns:
            Logits and the given probabilities (B, K, H, W) of the padded images, and the size of
            each image. In the padding, the first class has the probability 1.
        """
        images = self.padded([self.normalized(item) for item in batched_inputs])
        given = []
        for item in batched_inputs:
            maps = item["coarse_sem_seg"].to(self.device)
            below, right = (
                whole - part for whole, part in zip(images.tensor.shape[-2:], maps.shape[-2:])
            )
            first = F.pad(maps[:1], (0, right, 0, below), value=1.0)
            given.append(torch.cat([first, F.pad(maps[1:], (0, right, 0, below))]))
        probabilities = torch.stack(given)
        network = self.class_propagation or self.mask_propagation.class_logits
        return (
            network(probabilities, self.backbone(images.tensor)),
            probabilities,
            images.image_sizes,
        )

    def _class_loss(
        self, logits: torch.Tensor, batched_inputs: List[Dict]
    ) -> Dict[str, torch.Tensor]:
        labels = [item["sem_seg"] for item in batched_inputs]
        target = self._stacked(labels, logits.shape[-2:], self.ignored_label)
        loss = mean_cross_entropy(logits.float(), target, self.ignored_label)
        return {"loss_sem_seg": self.loss_weight * loss}

    def _stacked(
        self, maps: List[torch.Tensor], size: Sequence[int], value: float = 0
    ) -> torch.Tensor:
        """Pads maps (..., H, W) to a size and stacks them."""
        return torch.stack(
            [
                F.pad(
                    one.to(self.device),
                    (0, size[1] - one.shape[-1], 0, size[0] - one.shape[-2]),
                    value=value,
                )
                for one in maps
            ]
        )

    def _spread(
        self, batched_inputs: List[Dict]
    ) -> Tuple[torch.Tensor, torch.Tensor, List[Tuple[int, int]]]:
        """Spreads the sparse labels or values of a batch.

        Returns:
            The values (B, C, H, W) of the padded images, whether a pixel (B, H, W) belongs to its
            image, and the size of each image.
        """
        images = self.padded([self.normalized(item) for item in batched_inputs])
        values, known = [], []
        for item, size in zip(batched_inputs, images.image_sizes):
            if "sparse_labels" in item:
                labels = resize_maps(item["sparse_labels"].float()[None], size)[0]
                values.append(labels)
                known.append(labels.sum(dim=0))
            else:
                values.append(item["sparse_values"] * item["known"])
                known.append(item["known"].float())
        size = images.tensor.shape[-2:]
        inside = self._stacked([torch.ones_like(one) for one in known], size) > 0
        values, known = (self._stacked(maps, size) for maps in (values, known))
        spread = self.sparse_propagation(values, known, self.backbone(images.tensor))
        return spread, inside, images.image_sizes

    def _sparse_loss(self, batched_inputs: List[Dict]) -> Dict[str, torch.Tensor]:
        spread, inside, _ = self._spread(batched_inputs)
        if "sparse_labels" in batched_inputs[0]:
            return self._class_loss(log_probabilities(spread), batched_inputs)
        target = self._stacked([item["values"] for item in batched_inputs], spread.shape[-2:])
        error = (spread - target).abs().mean(dim=1)
        return {"loss_values": self.loss_weight * (error * inside).sum() / inside.sum()}

    def _loss(self, instances: Instances, gates: torch.Tensor) -> torch.Tensor:
        masks = instance_masks(instances)
        masks = masks[masks.flatten(1).any(dim=1)]
        masks = masks[torch.randperm(len(masks), device=masks.device)[: self.num_masks]]
        if len(masks) == 0:
            return zero_loss(gates)
        factor = self.coarse_factors[int(torch.randint(len(self.coarse_factors), ()))]
        coarse = coarsen_masks(masks, factor, self.jitter)
        grid = instances.image_size, self.mask_propagation.stride
        refined = self.mask_propagation(masks_on_grid(coarse, *grid), gates)
        return propagation_loss(refined, masks_on_grid(masks, *grid))

    @torch.no_grad()
    def inference(self, batched_inputs: List[Dict]) -> List[Dict]:
        """Refines ``instances``, ``sem_seg`` and ``sparse_labels`` of each image, where present."""
        if len({tuple(item["image"].shape) for item in batched_inputs}) > 1:
            return [self.inference([item])[0] for item in batched_inputs]
        if self.sparse_propagation is not None:
            return self._spread_outputs(batched_inputs)
        if self._refines_classes(batched_inputs[0]):
            return self._refined_classes(batched_inputs)
        gates, sizes = self.gates(batched_inputs)
        return [
            self._output(item, gates[index], sizes[index])
            for index, item in enumerate(batched_inputs)
        ]

    def _refined_classes(self, batched_inputs: List[Dict]) -> List[Dict]:
        outputs = []
        for item, logits, given, (height, width) in zip(
            batched_inputs, *self._class_logits(batched_inputs)
        ):
            logits, given = (maps[None, :, :height, :width] for maps in (logits, given))
            refined = suppress_absent_classes(logits, given).softmax(dim=1)
            out_size = (item.get("height", height), item.get("width", width))
            outputs.append({"sem_seg": resize_maps(refined, out_size)[0]})
        return outputs

    def _spread_outputs(self, batched_inputs: List[Dict]) -> List[Dict]:
        outputs = []
        spread, _, sizes = self._spread(batched_inputs)
        for item, values, (height, width) in zip(batched_inputs, spread, sizes):
            out_size = (item.get("height", height), item.get("width", width))
            values = resize_maps(values[None, :, :height, :width], out_size)[0]
            is_of_labels = "sparse_labels" in item
            names = ("sparse_labels", "sem_seg") if is_of_labels else ("sparse_values",)
            outputs.append(dict.fromkeys(names, values))
        return outputs

    def _output(self, item: Dict, gates: torch.Tensor, size: Tuple[int, int]) -> Dict:
        out_size = (item.get("height", size[0]), item.get("width", size[1]))
        output = {}
        if "instances" in item:
            instances = item["instances"].to(self.device)
            masks = self._refine(instances.pred_masks, gates, size)
            masks = upsample_masks(masks, self.mask_propagation.stride, size, out_size, 0.5)
            fields = {
                name: value
                for name, value in instances.get_fields().items()
                if name not in ("pred_masks", "pred_boxes")
            }
            boxes = BitMasks(masks).get_bounding_boxes().to(self.device)
            output["instances"] = Instances(out_size, pred_masks=masks, pred_boxes=boxes, **fields)
        for name, refine in (("sem_seg", self._refine), ("sparse_labels", self._propagate_labels)):
            if name in item:
                scores = refine(item[name].to(self.device), gates, size)
                padded = [side * self.mask_propagation.stride for side in scores.shape[-2:]]
                scores = resize_maps(scores[None], padded)[..., : size[0], : size[1]]
                output[name] = resize_maps(scores, out_size)[0]
        return output

    def _propagate_labels(
        self, labels: torch.Tensor, gates: torch.Tensor, size: Tuple[int, int]
    ) -> torch.Tensor:
        """Propagates sparse labels to all cells and returns class probabilities (K, h, w)."""
        labels = masks_on_grid(labels, size, self.mask_propagation.stride).double()
        total = labels.sum(dim=0)
        known = total > 0
        labels = labels / total.clamp(min=1e-12)
        # Closed gates keep the labeled cells as they are. Elsewhere labels decay with distance,
        # slowly inside regions and fast across edges, and the strongest label wins. Double
        # precision lets them reach distant cells.
        gates = gates[..., : known.shape[0], : known.shape[1]].double() * ~known
        propagated = self.mask_propagation(labels, gates)
        total = propagated.sum(dim=0)
        if bool((total == 0).any()) and bool(known.any()):
            # Cells that no label reached get the nearest label.
            row, column = nearest_cells(known)
            propagated = torch.where(total > 0, propagated, labels[:, row, column])
        return (propagated / propagated.sum(dim=0).clamp(min=1e-300)).float()

    def _refine(
        self, masks: torch.Tensor, gates: torch.Tensor, size: Tuple[int, int]
    ) -> torch.Tensor:
        """Refines masks (K, h, w) on the grid of the gates."""
        masks = masks_on_grid(masks, size, self.mask_propagation.stride)
        return self.mask_propagation(masks, gates)
