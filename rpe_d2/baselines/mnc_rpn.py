"""The region proposal network of MNC, whose boxes receive the gradient of the later stages."""

from typing import Dict, List, Optional, Sequence, Tuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.proposal_generator.proposal_utils import find_top_rpn_proposals
from detectron2.structures import Boxes, Instances
from torch import nn

from rpe_d2.modeling.argument_checks import check_range

# The largest gradient of a box delta, as in the authors' release, whose batches have one image.
# Gradients through the RoI warping can be very large.
_LARGEST_GRADIENT = 1 / 512


@PROPOSAL_GENERATOR_REGISTRY.register()
class MNCRPN(RPN):
    """Detectron2's RPN with differentiable proposal boxes (Dai et al., CVPR 2016, section 3).

    The selection of the proposals is not differentiated. Sides that are clipped at the border of
    the image have no gradient; in the authors' release, all sides of such a box have none. Use it
    with RoI heads that need the gradient: :class:`rpe_d2.baselines.MNCROIHeads`.
    """

    @configurable
    def __init__(
        self,
        *,
        in_features: Sequence[str],
        head: nn.Module,
        anchor_generator: nn.Module,
        anchor_matcher: Optional[Matcher] = None,
        box2box_transform: Optional[Box2BoxTransform] = None,
        batch_size_per_image: int = 256,
        positive_fraction: float = 0.5,
        pre_nms_topk: Tuple[int, int] = (12000, 6000),
        post_nms_topk: Tuple[int, int] = (2000, 1000),
        accumulate_steps: int = 1,
        **kwargs,
    ):
        """
        The defaults are those of Detectron2's configuration.

        Args:
            accumulate_steps: number of batches whose gradients are averaged for one step.
            other arguments: see ``RPN``.
        """
        check_range("accumulate_steps", accumulate_steps, 1)
        super().__init__(
            in_features=list(in_features),
            head=head,
            anchor_generator=anchor_generator,
            anchor_matcher=anchor_matcher or Matcher([0.3, 0.7], [0, -1, 1], True),
            box2box_transform=box2box_transform or Box2BoxTransform((1.0, 1.0, 1.0, 1.0)),
            batch_size_per_image=batch_size_per_image,
            positive_fraction=positive_fraction,
            pre_nms_topk=pre_nms_topk,
            post_nms_topk=post_nms_topk,
            **kwargs,
        )
        self.accumulate_steps = accumulate_steps

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]):
        check_precision("MODEL.PROPOSAL_GENERATOR.NAME MNCRPN", cfg)
        arguments = super().from_config(cfg, input_shape)
        return {**arguments, "accumulate_steps": cfg.SOLVER.ACCUMULATE_STEPS}

    def predict_proposals(
        self,
        anchors: List[Boxes],
        pred_objectness_logits: List[torch.Tensor],
        pred_anchor_deltas: List[torch.Tensor],
        image_sizes: List[Tuple[int, int]],
    ) -> List[Instances]:
        """Decodes and selects proposals as ``RPN`` does, but keeps the gradient of their boxes."""
        num_images = len(image_sizes) * self.accumulate_steps
        deltas = [bounded_gradient(part, num_images) for part in pred_anchor_deltas]
        return find_top_rpn_proposals(
            self._decode_proposals(anchors, deltas),
            [logits.detach() for logits in pred_objectness_logits],
            image_sizes,
            self.nms_thresh,
            self.pre_nms_topk[self.training],
            self.post_nms_topk[self.training],
            self.min_box_size,
            self.training,
        )


def check_precision(user: str, cfg: CfgNode) -> None:
    """Rejects training with a loss scaler, which multiplies gradients by up to 2^16.

    :func:`bounded_gradient` would clip the scaled gradients.

    Args:
        user: the configuration key, with its value, that needs bounded gradients.

    Raises:
        ValueError: Training uses float16.
    """
    amp = cfg.SOLVER.AMP
    if amp.ENABLED and amp.PRECISION == "float16":
        raise ValueError(
            f"SOLVER.AMP.PRECISION is float16, whose scaled gradients {user} would clip; "
            "allowed: bfloat16, or SOLVER.AMP.ENABLED False"
        )


def bounded_gradient(deltas: torch.Tensor, num_images: int) -> torch.Tensor:
    """Returns the deltas unchanged and clips their gradient to +-1 / (512 * num_images).

    The losses are means over the images of a step, so the bound is divided by their number too. The
    RPN's own loss has a gradient of at most 1 / (256 * num_images) per coordinate. With three or
    more images this is less than 1 / 512, and a fixed bound would let boxes drift off their
    objects.

    Args:
        deltas: box deltas of any shape.
        num_images: number of images per optimizer step.
    """
    if not deltas.requires_grad:
        return deltas
    largest = _LARGEST_GRADIENT / num_images
    deltas = deltas.clone()  # other uses of the deltas keep their gradient
    deltas.register_hook(lambda gradient: gradient.clamp(-largest, largest))
    return deltas
