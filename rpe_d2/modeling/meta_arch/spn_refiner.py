"""Refines masks of whatever model by spatial propagation."""

from typing import Dict, List, Sequence, Tuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.backbone import Backbone
from detectron2.structures import BitMasks, Instances
from scipy.ndimage import distance_transform_edt

from rpe_d2.ops.coarsen import coarsen_masks

from ..embedding.labels import instance_masks
from ..layers import resize_maps
from ..soft_masks import masks_on_grid, upsample_masks
from ..spn import MaskPropagation, propagation_loss
from .padded_input import PaddedInput


@META_ARCH_REGISTRY.register()
class SPNRefiner(PaddedInput):
    """The universal propagation network (Liu et al., NIPS 2017, section 4): refines masks that others made.

    Input is Detectron2's list of dicts with ``image`` (C, H, W). In training ``instances`` with ``gt_masks``, of which
    coarse masks are made. At inference ``instances`` with ``pred_masks`` (R, h, w), bool or in 0-1, and ``sem_seg``
    (K, h, w), scores in 0-1, both of any resolution and both optional; the same come back, refined, of the size
    ``height`` x ``width``: masks bool, ``pred_boxes`` around them, other fields as they were. ``sparse_labels`` (K, h,
    w), 1 where a class is known to be and 0 elsewhere, spread to all other pixels.
    """

    dataset_mapper_name = "PixelLabelMapper"

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        mask_propagation: MaskPropagation,
        num_masks: int,
        coarse_factors: Sequence[int],
        jitter: int,
        loss_weight: float,
        pixel_mean: Tuple[float, ...],
        pixel_std: Tuple[float, ...],
    ):
        """
        Args:
            backbone: whose maps guide.
            mask_propagation: refines.
            num_masks: of a picture that are trained on.
            coarse_factors, jitter: of the masks trained on, see :func:`rpe_d2.ops.coarsen.coarsen_masks`.
            loss_weight: factor of the loss.
            pixel_mean, pixel_std: per channel.
        """
        super().__init__(backbone, pixel_mean, pixel_std, [mask_propagation.stride])
        self.mask_propagation = mask_propagation
        self.num_masks = num_masks
        self.coarse_factors = tuple(coarse_factors)
        self.jitter = jitter
        self.loss_weight = loss_weight

    @classmethod
    def from_config(cls, cfg):
        backbone = build_backbone(cfg)
        spn = cfg.MODEL.SPN
        return {
            "backbone": backbone,
            "mask_propagation": MaskPropagation.from_config(cfg, backbone.output_shape()),
            "num_masks": spn.NUM_MASKS,
            "coarse_factors": spn.COARSE_FACTORS,
            "jitter": spn.JITTER,
            "loss_weight": spn.LOSS_WEIGHT,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @classmethod
    def inference_inputs(cls, cfg: CfgNode) -> Tuple[str, ...]:
        return ("coarse_masks",)

    def forward(self, batched_inputs: List[Dict]) -> List[Dict]:
        """The loss in training (a dict of a scalar), else :meth:`inference`.

        Raises:
            ValueError: in training without propagation, where there is nothing to learn.
        """
        if not self.training:
            return self.inference(batched_inputs)
        if self.mask_propagation.options.num_units == 0:
            raise ValueError(
                "MODEL.SPN.NUM_UNITS is 0; allowed in training an SPNRefiner: 1 or more"
            )
        gates, _ = self.gates(batched_inputs)
        with torch.autocast(device_type=self.device.type, enabled=False):
            losses = [
                self._loss(item["instances"].to(self.device), gates[index])
                for index, item in enumerate(batched_inputs)
            ]
        return {"loss_propagation": self.loss_weight * sum(losses) / len(losses)}

    def gates(self, batched_inputs: List[Dict]) -> Tuple[torch.Tensor, List[Tuple[int, int]]]:
        """Gates (B, 1, 4 x connections, h, w) of the padded batch, and the images' sizes (H, W)."""
        images = self.padded([self.normalized(item) for item in batched_inputs])
        return self.mask_propagation.gates(self.backbone(images.tensor)), images.image_sizes

    def _loss(self, instances: Instances, gates: torch.Tensor) -> torch.Tensor:
        masks = instance_masks(instances)
        masks = masks[masks.flatten(1).any(dim=1)]
        masks = masks[torch.randperm(len(masks), device=masks.device)[: self.num_masks]]
        if len(masks) == 0:
            return gates.sum() * 0.0
        factor = self.coarse_factors[int(torch.randint(len(self.coarse_factors), ()))]
        coarse = coarsen_masks(masks, factor, self.jitter)
        grid = instances.image_size, self.mask_propagation.stride
        found = self.mask_propagation(masks_on_grid(coarse, *grid), gates)
        return propagation_loss(found, masks_on_grid(masks, *grid))

    @torch.no_grad()
    def inference(self, batched_inputs: List[Dict]) -> List[Dict]:
        """Refined ``instances`` and ``sem_seg`` of each image, as far as it has them."""
        if len({tuple(item["image"].shape) for item in batched_inputs}) > 1:
            return [self.inference([item])[0] for item in batched_inputs]
        gates, sizes = self.gates(batched_inputs)
        return [
            self._output(item, gates[index], sizes[index])
            for index, item in enumerate(batched_inputs)
        ]

    def _output(self, item: Dict, gates: torch.Tensor, size: Tuple[int, int]) -> Dict:
        out_size = (item.get("height", size[0]), item.get("width", size[1]))
        output = {}
        if "instances" in item:
            instances = item["instances"].to(self.device)
            masks = self._refined(instances.pred_masks, gates, size)
            masks = upsample_masks(masks, self.mask_propagation.stride, size, out_size, 0.5)
            fields = {
                name: value
                for name, value in instances.get_fields().items()
                if name not in ("pred_masks", "pred_boxes")
            }
            boxes = BitMasks(masks).get_bounding_boxes().to(self.device)
            output["instances"] = Instances(out_size, pred_masks=masks, pred_boxes=boxes, **fields)
        for name, refine in (("sem_seg", self._refined), ("sparse_labels", self._spread)):
            if name in item:
                scores = refine(item[name].to(self.device), gates, size)
                padded = [side * self.mask_propagation.stride for side in scores.shape[-2:]]
                scores = resize_maps(scores[None], padded)[..., : size[0], : size[1]]
                output[name] = resize_maps(scores, out_size)[0]
        return output

    def _spread(
        self, labels: torch.Tensor, gates: torch.Tensor, size: Tuple[int, int]
    ) -> torch.Tensor:
        """(K, rows, columns) shares of the classes, from labels on few pixels."""
        labels = masks_on_grid(labels, size, self.mask_propagation.stride).double()
        total = labels.sum(dim=0)
        known = total > 0
        labels = labels / total.clamp(min=1e-12)
        # Nothing flows into a labelled cell. Elsewhere what arrives is damped, little inside of a region and much at its
        # border: the label that comes the easiest way is the strongest. Double precision carries far.
        gates = gates[..., : known.shape[0], : known.shape[1]].double() * ~known
        found = self.mask_propagation(labels, gates)
        arrived = found.sum(dim=0)
        if bool((arrived == 0).any()) and bool(known.any()):
            row, column = torch.from_numpy(
                distance_transform_edt(
                    ~known.cpu().numpy(), return_distances=False, return_indices=True
                )
            ).to(labels.device)
            found = torch.where(arrived > 0, found, labels[:, row, column])
        return (found / found.sum(dim=0).clamp(min=1e-300)).float()

    def _refined(
        self, masks: torch.Tensor, gates: torch.Tensor, size: Tuple[int, int]
    ) -> torch.Tensor:
        return self.mask_propagation(
            masks_on_grid(masks, size, self.mask_propagation.stride), gates
        )
