"""Contour detection by pixel embeddings."""

from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.backbone import Backbone
from detectron2.utils.events import EventStorage, get_event_storage
from torch.nn import functional as F

from rpe_d2.config import check_config
from rpe_d2.ops.color import embedding_to_rgb
from rpe_d2.ops.edge_nms import edge_nms

from ..boundary_head import BoundaryHead, BoundaryMaps
from ..boundary_loss import BoundaryLoss, BoundaryTarget
from ..embedding.methods import check_spherical
from ..layers import resize_maps
from .padded_input import PIXEL_MEAN, PIXEL_STD, PaddedInput


@META_ARCH_REGISTRY.register()
class BoundaryEmbeddingNet(PaddedInput):
    """Detects contours with embeddings at several levels of a backbone.

    At every level the pair loss separates the embeddings of boundary pixels from those of other
    pixels, and a logistic stage classifies them. The predictions of all levels are averaged. The
    paper (Kong & Fowlkes, CVPR 2018, section 5) trains with the pair loss first and adds the
    logistic loss later: train once with ``MODEL.BOUNDARY.LOGISTIC_LOSS_WEIGHT`` 0, then train from
    these weights with both losses. Training with both losses from the start works as well.

    The input is Detectron2's list of dicts with ``image`` (C, H, W) and, in training,
    ``boundaries`` (A, H, W) bool, the contours of A annotators. The output dicts have
    ``boundaries`` (``height``, ``width``), float32 boundary probabilities in 0-1.
    """

    dataset_mapper_name = "BoundaryMapper"

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        boundary_head: Optional[BoundaryHead] = None,
        boundary_loss: Optional[BoundaryLoss] = None,
        test_scales: Sequence[float] = (1.0,),
        thin: bool = False,
        pixel_mean: Sequence[float] = PIXEL_MEAN,
        pixel_std: Sequence[float] = PIXEL_STD,
        input_format: str = "BGR",
        vis_period: int = 0,
    ):
        """
        Args:
            backbone: the backbone.
            boundary_head: embeds pixels; None for the default head on all backbone outputs.
            boundary_loss: the losses; None for the default. If its ``logistic_loss_weight`` is 0,
                pixels are scored by their distances from the centers of the two groups instead of
                the logistic stage.
            test_scales: scale factors of the image over which inference averages.
            thin: apply non-maximum suppression, see :func:`rpe_d2.ops.edge_nms.edge_nms`.
            pixel_mean, pixel_std: mean and standard deviation of each image channel.
            input_format: channel order of the images, for visualization.
            vis_period: iterations between visualizations in training; 0 for none.
        """
        if not test_scales or min(test_scales) <= 0:
            raise ValueError(f"test_scales is {test_scales}; allowed: one or more factors above 0")
        if boundary_head is None:
            boundary_head = BoundaryHead(backbone.output_shape())
        if boundary_loss is None:
            boundary_loss = BoundaryLoss()
        super().__init__(backbone, pixel_mean, pixel_std, [boundary_head.stride])
        self.boundary_head = boundary_head
        self.boundary_loss = boundary_loss
        self.use_logistic = boundary_loss.logistic_loss_weight > 0
        self.test_scales = tuple(test_scales)
        self.thin = thin
        self.input_format = input_format
        self.vis_period = vis_period

    @classmethod
    def from_config(cls, cfg: CfgNode):
        check_config(cfg, "MODEL.BOUNDARY")
        check_spherical(cfg, "BoundaryEmbeddingNet")
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "boundary_head": BoundaryHead(cfg, backbone.output_shape()),
            "boundary_loss": BoundaryLoss(cfg),
            "test_scales": cfg.MODEL.BOUNDARY.TEST_SCALES,
            "thin": cfg.MODEL.BOUNDARY.THIN,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "input_format": cfg.INPUT.FORMAT,
            "vis_period": cfg.VIS_PERIOD,
        }

    @property
    def level_names(self) -> List[str]:
        """Names of the levels that :meth:`predict_levels` returns."""
        return self.boundary_head.level_names

    def forward(self, batched_inputs: List[Dict]) -> List[Dict]:
        """
        Returns:
            In training a dict of scalar losses; otherwise the result of :meth:`inference`.
        """
        if not self.training:
            return self.inference(batched_inputs)
        targets = [self._target(item) for item in batched_inputs]
        maps = self._maps([self.normalized(item) for item in batched_inputs])
        # Sums over thousands of pixels overflow half precision.
        with torch.autocast(device_type=self.device.type, enabled=False):
            losses = self.boundary_loss(maps, targets, self.boundary_head.centers)
        if self.vis_period > 0:
            storage = get_event_storage()
            if storage.iter % self.vis_period == 0:
                self._visualize_training(batched_inputs[0], maps, targets[0], storage)
        return losses

    @torch.no_grad()
    def inference(self, batched_inputs: List[Dict]) -> List[Dict]:
        """Predicts boundary probabilities, resized to ``height`` x ``width`` of each image.

        Images are processed one by one, so the result does not depend on the rest of the batch.
        """
        return [{"boundaries": self._boundaries(item)} for item in batched_inputs]

    @torch.no_grad()
    def predict_levels(self, item: Dict) -> Tuple[BoundaryMaps, torch.Tensor]:
        """Predicts the individual levels of an image, for visualization.

        Args:
            item: dict with ``image`` (C, H, W).

        Returns:
            Embeddings and logits at stride 1, without padding, and scores (L, H, W) in 0-1.
        """
        height, width = item["image"].shape[-2:]
        maps = self._maps([self.normalized(item)]).at_pixels()
        maps = BoundaryMaps(
            maps.embeddings[..., :height, :width], maps.logits[..., :height, :width], 1
        )
        return maps, self._scores(maps)[0]

    def _maps(self, images: List[torch.Tensor]) -> BoundaryMaps:
        return self.boundary_head(self.backbone(self.padded(images).tensor))

    def _target(self, item: Dict[str, Any]) -> BoundaryTarget:
        if "boundaries" not in item:
            raise ValueError(
                f"{item.get('file_name', 'an image')} has no boundaries to train on; "
                "rpe_d2.data.BoundaryMapper reads them"
            )
        return self.boundary_loss.target(item["boundaries"].to(self.device))

    def _scores(self, maps: BoundaryMaps) -> torch.Tensor:
        """Scores pixels in 0-1, (B, L, H, W), from maps at stride 1."""
        if self.use_logistic:
            return maps.logits.sigmoid()
        return self.boundary_head.centers.scores(maps.embeddings)

    def _boundaries(self, item: Dict) -> torch.Tensor:
        image = self.normalized(item)
        size = image.shape[-2:]
        out_size = (item.get("height", size[0]), item.get("width", size[1]))
        at_scales = [self._at_scale(image, scale, out_size) for scale in self.test_scales]
        boundaries = sum(at_scales) / len(at_scales)
        return edge_nms(boundaries) if self.thin else boundaries

    def _at_scale(self, image: torch.Tensor, scale: float, out_size: Sequence[int]) -> torch.Tensor:
        """Predicts the mean of the levels, (height, width), from the rescaled image."""
        size = [max(1, round(side * scale)) for side in image.shape[-2:]]
        if size != list(image.shape[-2:]):
            image = F.interpolate(
                image[None], size=size, mode="bilinear", align_corners=False, antialias=True
            )[0]
        maps = self._maps([image])
        with torch.autocast(device_type=self.device.type, enabled=False):
            scores = self._scores(maps.at_pixels()).mean(dim=1, keepdim=True)
            return resize_maps(scores[..., : size[0], : size[1]], out_size)[0, 0]

    @torch.no_grad()
    def _visualize_training(
        self, item: Dict, maps: BoundaryMaps, target: BoundaryTarget, storage: EventStorage
    ) -> None:
        """Logs the image, the target, the prediction and the embeddings of the first image."""
        height, width = item["image"].shape[-2:]
        image = item["image"].flip(0) if self.input_format == "BGR" else item["image"]
        maps = BoundaryMaps(maps.embeddings[:1], maps.logits[:1], maps.stride).at_pixels()
        pred = self._scores(maps)[0].mean(dim=0)[:height, :width]
        panels = [image[:3].cpu().float() / 255]
        panels += [gray.expand(3, -1, -1).cpu() for gray in (target.boundary, pred)]
        embeddings = maps.embeddings[0, :, :, :height, :width]  # (L, D, H, W)
        panels.append(embedding_to_rgb(torch.cat(list(embeddings), dim=2)).cpu())
        picture = (255 * torch.cat(panels, dim=2)).to(torch.uint8)
        storage.put_image("image, annotators, boundaries, embeddings of each level", picture)
