"""The region proposal network of multi-task network cascades: later stages' losses reach its boxes."""

from typing import Dict, List, Tuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.proposal_generator.proposal_utils import find_top_rpn_proposals
from detectron2.structures import Boxes, Instances


@PROPOSAL_GENERATOR_REGISTRY.register()
class MNCRPN(RPN):
    """Detectron2's RPN whose proposals keep the gradient of their coordinates (Dai et al., CVPR 2016, section 3).

    Which proposals are kept does not depend on it. Sides that are clipped at the image's border have none; the authors'
    release takes it from all sides of such a box. Pair it with ROI heads that use it:
    :class:`rpe_d2.modeling.MNCROIHeads`.
    """

    @configurable
    def __init__(self, *, accumulate_steps: int = 1, **kwargs):
        """
        Args:
            accumulate_steps: batches whose gradients are averaged for one step.
            kwargs: of RPN.
        """
        super().__init__(**kwargs)
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
        """As the RPN's, with gradient from ``proposal_boxes`` to ``pred_anchor_deltas``."""
        images = len(image_sizes) * self.accumulate_steps
        deltas = [bounded_gradient(d, images) for d in pred_anchor_deltas]
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


# Of each coordinate of a box's deltas, as in the authors' release, whose batches have one image: the way through the
# warping is steep.
_LARGEST_GRADIENT = 1 / 512


def check_precision(user: str, cfg: CfgNode) -> None:
    """Refuses training with a loss scaler: it multiplies the gradient that :func:`bounded_gradient` cuts by up to 2^16.

    Raises:
        ValueError: in the name of ``user``, a key with its value.
    """
    amp = cfg.SOLVER.AMP
    if amp.ENABLED and amp.PRECISION == "float16":
        raise ValueError(
            f"SOLVER.AMP.PRECISION is float16, whose scaled gradients {user} would cut; allowed: bfloat16, or "
            "SOLVER.AMP.ENABLED False"
        )


def bounded_gradient(deltas: torch.Tensor, num_images: int) -> torch.Tensor:
    """The same values; the gradient that comes back is cut at +- 1 / (512 * num_images).

    As losses are means over the images of a step, the cut is shared by them, too: the RPN's own loss pulls a coordinate
    by at most 1 / (256 * images), less than 1 / 512 from three images on, and boxes would leave their objects.
    """
    if not deltas.requires_grad:
        return deltas
    largest = _LARGEST_GRADIENT / num_images
    deltas = deltas.clone()  # the cut does not apply to other uses
    deltas.register_hook(lambda gradient: gradient.clamp(-largest, largest))
    return deltas
