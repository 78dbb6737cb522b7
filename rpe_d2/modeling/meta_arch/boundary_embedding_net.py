"""Boundary detection by pixel embeddings."""

from typing import Dict, List, Sequence, Tuple

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.backbone import Backbone
from detectron2.utils.events import get_event_storage
from torch.nn import functional as F

from rpe_d2.config import check_config
from rpe_d2.ops.color import embedding_to_rgb
from rpe_d2.ops.edge_nms import edge_nms

from ..boundary_head import BoundaryHead, BoundaryMaps
from ..boundary_loss import BoundaryLoss, BoundaryTarget
from ..layers import resize_maps
from .padded_input import PaddedInput


@META_ARCH_REGISTRY.register()
class BoundaryEmbeddingNet(PaddedInput):
    """Boundaries from embeddings at several levels of a backbone (Kong & Fowlkes, CVPR 2018, section 5).

    Two groups of pixels, boundary and no boundary, are pulled apart on the sphere at every level by the pair loss; a
    logistic stage decides from the embeddings. Outputs of all levels are averaged. The paper trains with the pair loss
    first and then adds the logistic loss: that is one training with ``MODEL.BOUNDARY.LOGISTIC_LOSS_WEIGHT 0`` whose
    weights a second one starts from; both weights above 0 from the start work as well.

    Input is Detectron2's list of dicts with ``image`` (C, H, W), in training ``boundaries`` (A, H, W) bool, what each
    of A annotators drew. Inference gives ``boundaries`` (``height``, ``width``) float32, 0-1.
    """

    dataset_mapper_name = "BoundaryMapper"

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        boundary_head: BoundaryHead,
        boundary_loss: BoundaryLoss,
        use_logistic: bool,
        test_scales: Sequence[float],
        thin: bool,
        pixel_mean: Tuple[float, ...],
        pixel_std: Tuple[float, ...],
        input_format: str,
        vis_period: int,
    ):
        """
        Args:
            backbone, boundary_head, boundary_loss: the parts, in the order of the data flow.
            use_logistic: score pixels by the logistic stage; else by their place between the groups' centres.
            test_scales: sizes of the picture, factors, over which inference averages.
            thin: :func:`rpe_d2.ops.edge_nms.edge_nms` after all.
            pixel_mean, pixel_std: per channel.
            input_format: channel order of the images, for pictures.
            vis_period: iterations between training pictures; 0: none.
        """
        super().__init__(backbone, pixel_mean, pixel_std, [boundary_head.stride])
        self.boundary_head = boundary_head
        self.boundary_loss = boundary_loss
        self.use_logistic = use_logistic
        self.test_scales = tuple(test_scales)
        self.thin = thin
        self.input_format = input_format
        self.vis_period = vis_period

    @classmethod
    def from_config(cls, cfg):
        check_config(cfg, "MODEL.BOUNDARY")
        backbone = build_backbone(cfg)
        boundary = cfg.MODEL.BOUNDARY
        return {
            "backbone": backbone,
            "boundary_head": BoundaryHead(cfg, backbone.output_shape()),
            "boundary_loss": BoundaryLoss(cfg),
            "use_logistic": boundary.LOGISTIC_LOSS_WEIGHT > 0,
            "test_scales": boundary.TEST_SCALES,
            "thin": boundary.THIN,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "input_format": cfg.INPUT.FORMAT,
            "vis_period": cfg.VIS_PERIOD,
        }

    def forward(self, batched_inputs: List[Dict]) -> List[Dict]:
        """Losses in training (a dict of scalars), else :meth:`inference`."""
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
                self._put_picture(batched_inputs[0], maps, targets[0], storage)
        return losses

    @torch.no_grad()
    def inference(self, batched_inputs: List[Dict]) -> List[Dict]:
        """Boundaries per image, scaled to its ``height`` and ``width``.

        Images run one by one: what is found in an image does not depend on the others of the batch.
        """
        return [{"boundaries": self._boundaries(item)} for item in batched_inputs]

    @torch.no_grad()
    def predict_levels(self, item: Dict) -> Tuple[BoundaryMaps, torch.Tensor]:
        """What an image's levels say at the picture's network size, for pictures.

        Returns:
            embeddings and logits at stride 1, without padding, and the scores (L, H, W) in 0-1.
        """
        height, width = item["image"].shape[-2:]
        maps = self._maps([self.normalized(item)]).at_pixels()
        maps = BoundaryMaps(
            maps.embeddings[..., :height, :width], maps.logits[..., :height, :width], 1
        )
        return maps, self._scores(maps)[0]

    def _maps(self, images: List[torch.Tensor]) -> BoundaryMaps:
        return self.boundary_head(self.backbone(self.padded(images).tensor))

    def _target(self, item: Dict) -> BoundaryTarget:
        if "boundaries" not in item:
            raise ValueError(
                f"{item.get('file_name', 'an image')} has no boundaries to train on; "
                "rpe_d2.data.BoundaryMapper reads them"
            )
        return self.boundary_loss.target(item["boundaries"].to(self.device))

    def _scores(self, maps: BoundaryMaps) -> torch.Tensor:
        """(B, L, H, W) in 0-1, of maps at stride 1."""
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
        """(height, width) mean of the levels, from the picture at another size."""
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
    def _put_picture(self, item, maps: BoundaryMaps, target: BoundaryTarget, storage) -> None:
        """Image, annotators, boundaries and the embeddings' colours, side by side."""
        height, width = item["image"].shape[-2:]
        image = item["image"].flip(0) if self.input_format == "BGR" else item["image"]
        maps = BoundaryMaps(maps.embeddings[:1], maps.logits[:1], maps.stride).at_pixels()
        found = self._scores(maps)[0].mean(dim=0)[:height, :width]
        panels = [image[:3].cpu().float() / 255]
        panels += [grey.expand(3, -1, -1).cpu() for grey in (target.boundary, found)]
        embeddings = maps.embeddings[0, :, :, :height, :width]  # (L, D, H, W)
        panels.append(embedding_to_rgb(torch.cat(list(embeddings), dim=2)).cpu())
        picture = (255 * torch.cat(panels, dim=2)).to(torch.uint8)
        storage.put_image("image, annotators, boundaries, embeddings of each level", picture)
