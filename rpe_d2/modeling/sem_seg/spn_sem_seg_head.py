"""A semantic head that refines the logits of another one by spatial propagation."""

from typing import Dict, Optional, Tuple, Union

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import nn
from torch.nn import functional as F

from ..argument_checks import check_range
from ..backbone.guided_backbone import freeze, is_frozen
from ..embedding.loss import mean_cross_entropy
from ..embedding.semantic_pair_loss import SemanticPairLoss, build_semantic_pair_loss
from ..layers import adopt_children, enlarge_maps, zero_loss
from ..spn import (
    GuidanceNetwork,
    ProbabilityPropagation,
    PropagationHead,
    check_softmax_gates,
    guidance_arguments,
    suppress_absent_classes,
    unit_arguments,
)
from .sem_seg_head import IGNORE_VALUE


@SEM_SEG_HEADS_REGISTRY.register()
class SPNSemSegHead(nn.Module):
    """Refines the logits of the head named in ``MODEL.SPN.SEM_SEG_HEAD`` (Liu et al., NIPS 2017).

    As in the paper, an embedding of the logits is propagated, and a projection of the result is
    added to the logits; see :class:`PropagationHead`. With ``MODEL.SPN.CHANNELS`` 0 the class
    probabilities themselves are propagated; see :class:`ProbabilityPropagation`. The parameters of
    the refined head keep their names, so its checkpoints load.

    All losses of the refined head remain; the loss after the refinement is "loss_sem_seg_refined".
    The pair loss of ``MODEL.SEM_SEG_HEAD`` is applied to the propagated features. As in the paper,
    only classes that are predicted somewhere before the refinement can be predicted after it. With
    ``MODEL.SPN.FREEZE_HEAD`` the refined head is not trained and has no losses.
    """

    has_pair_loss = True
    has_class_balance = True

    @configurable
    def __init__(
        self,
        input_shape: Dict[str, ShapeSpec],
        *,
        head: nn.Module,
        num_classes: int,
        propagation: Union[PropagationHead, ProbabilityPropagation, None] = None,
        guidance: Optional[GuidanceNetwork] = None,
        ignore_value: int = IGNORE_VALUE,
        refined_loss_weight: float = 1.0,
        pair_loss: Optional[SemanticPairLoss] = None,
        freeze_head: bool = False,
    ):
        """
        Args:
            input_shape: channels and stride of the feature maps.
            head: the refined head, with ``layers(features)``, which returns logits
                (B, K, H / s, W / s), ``losses(scores, targets)`` and ``common_stride`` s, as in
                Detectron2. In training, ``scores_and_losses(features, targets)`` is used if the
                head has it, as the heads of this package do.
            num_classes: number K of classes.
            propagation: propagates K maps; None for a :class:`PropagationHead`.
            guidance: predicts the gates from the feature maps; None for a
                :class:`GuidanceNetwork` on all of them.
            ignore_value: label of the pixels that enter no loss.
            refined_loss_weight: weight of the loss after the refinement.
            pair_loss: pair loss on a projection of the propagated features; None for none.
            freeze_head: do not train ``head``.

        Raises:
            ValueError: ``head`` lacks one of the attributes above, or its stride is not a multiple
                of the stride of the guidance.
        """
        super().__init__()
        check_range("refined_loss_weight", refined_loss_weight, 0)
        for name in ("layers", "losses", "common_stride"):
            if not hasattr(head, name):
                raise ValueError(
                    f"MODEL.SPN.SEM_SEG_HEAD is {type(head).__name__}, which has no {name!r}; "
                    "allowed: heads like SemSegFPNHead"
                )
        if propagation is None:
            propagation = PropagationHead(num_classes)
        if guidance is None:
            guidance = GuidanceNetwork(
                input_shape,
                out_channels=propagation.num_gates,
                bias=propagation.initial_gate_logit,
            )
        if head.common_stride % guidance.stride:
            raise ValueError(
                f"MODEL.SPN.STRIDE is {guidance.stride}; allowed: at most {head.common_stride}, "
                f"the stride of {type(head).__name__}"
            )
        self.guidance = guidance
        self.propagation = propagation
        self.ignore_value = ignore_value
        self.refined_loss_weight = refined_loss_weight
        self.pair_loss = pair_loss
        self.embedding = pair_loss and nn.Conv2d(
            propagation.num_features, pair_loss.embedding_dim, 1
        )
        self.freeze_head = freeze_head
        if freeze_head:
            head = freeze(head)
        self._wrapped = adopt_children(self, head)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]):
        spn = cfg.MODEL.SPN
        if spn.SEM_SEG_HEAD == cls.__name__ or spn.SEM_SEG_HEAD not in SEM_SEG_HEADS_REGISTRY:
            raise ValueError(
                f"MODEL.SPN.SEM_SEG_HEAD is {spn.SEM_SEG_HEAD!r}; allowed: the name of another "
                "registered head, such as SemSegFPNHead"
            )
        if spn.FREEZE_HEAD and not is_frozen(cfg):
            raise ValueError(
                "MODEL.SPN.FREEZE_HEAD is True, and the backbone of that head is trained; allowed: "
                "with MODEL.BACKBONE.NAME build_guided_backbone and "
                "MODEL.GUIDED_BACKBONE.FREEZE True"
            )
        arguments = unit_arguments(cfg)
        num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        if spn.CHANNELS:
            propagation = PropagationHead(num_classes, spn.CHANNELS, **arguments)
        else:
            check_softmax_gates(arguments.pop("gate_mode"), "with MODEL.SPN.CHANNELS 0")
            propagation = ProbabilityPropagation(num_classes, **arguments)
        head_class = SEM_SEG_HEADS_REGISTRY.get(spn.SEM_SEG_HEAD)
        balance = cfg.MODEL.SEM_SEG_HEAD.CLASS_BALANCE
        if balance and not hasattr(head_class, "balance_classes"):
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.CLASS_BALANCE is {balance:g}; {spn.SEM_SEG_HEAD} "
                "(MODEL.SPN.SEM_SEG_HEAD) has no class balance, allowed: 0"
            )
        pair_loss = build_semantic_pair_loss(
            cfg, getattr(head_class, "default_pair_loss_weight", 0.0)
        )
        head_cfg = cfg.clone()
        head_cfg.defrost()
        head_cfg.MODEL.SEM_SEG_HEAD.PAIR_LOSS_WEIGHT = 0.0  # the pair loss is applied once
        return {
            "input_shape": input_shape,
            "head": head_class(head_cfg, input_shape),
            "num_classes": num_classes,
            "propagation": propagation,
            "guidance": GuidanceNetwork(
                **guidance_arguments(cfg, input_shape),
                out_channels=propagation.num_gates,
                bias=propagation.initial_gate_logit,
            ),
            "ignore_value": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            "refined_loss_weight": spn.LOSS_WEIGHT * cfg.MODEL.SEM_SEG_HEAD.LOSS_WEIGHT,
            "pair_loss": pair_loss,
            "freeze_head": spn.FREEZE_HEAD,
        }

    @classmethod
    def check_run(cls, cfg: CfgNode, has_weights: bool) -> None:
        """Raises a ValueError if training with this configuration cannot start.

        Args:
            has_weights: whether training starts from the weights of a checkpoint.
        """
        if cfg.MODEL.SPN.FREEZE_HEAD and not has_weights:
            raise ValueError(
                "MODEL.WEIGHTS is empty; MODEL.SPN.FREEZE_HEAD keeps a trained head, name its "
                "checkpoint"
            )

    def balance_classes(self, pixel_counts: torch.Tensor) -> None:
        """Sets the weights of the classes before and after the refinement; see the refined head."""
        self._wrapped[0].balance_classes(pixel_counts)

    def train(self, mode: bool = True) -> "SPNSemSegHead":
        super().train(mode)
        # The children of the refined head are also children of this module.
        self._wrapped[0].train(mode and not self.freeze_head)
        return self

    def forward(
        self, features: Dict[str, torch.Tensor], targets: Optional[torch.Tensor] = None
    ) -> Tuple[Optional[torch.Tensor], Dict[str, torch.Tensor]]:
        """
        Args:
            features: feature maps of the backbone.
            targets: (B, H, W) int64 class labels, in training.

        Returns:
            In training None and a dict of losses. Otherwise logits (B, K, H', W') and an empty
            dict; H' x W' is the size of the padded image, rounded up to a multiple of the stride.
        """
        losses = {}
        if self.training:
            coarse, losses = self._coarse_scores_and_losses(features, targets)
        else:
            coarse = self._wrapped[0].layers(features)
        coarse = coarse.float()
        propagated, refined = self._refine(coarse, features)
        stride = self.guidance.stride
        refined = F.interpolate(refined, scale_factor=stride, mode="bilinear", align_corners=False)
        if not self.training:
            return suppress_absent_classes(refined, coarse), losses
        height, width = targets.shape[-2:]
        loss = mean_cross_entropy(
            refined[..., :height, :width],
            targets,
            self.ignore_value,
            getattr(self._wrapped[0], "class_weights", None),
        )
        losses["loss_sem_seg_refined"] = loss * self.refined_loss_weight
        if self.pair_loss is not None:
            losses.update(self.pair_loss(self.embedding(propagated), stride, targets))
        return None, losses

    def _coarse_scores_and_losses(
        self, features: Dict[str, torch.Tensor], targets: torch.Tensor
    ) -> Tuple[torch.Tensor, Dict[str, torch.Tensor]]:
        """Computes the logits and losses of the refined head; a frozen head has no losses."""
        head = self._wrapped[0]
        if self.freeze_head:
            return head.layers(features).detach(), {}
        if hasattr(head, "scores_and_losses"):
            return head.scores_and_losses(features, targets)
        scores = head.layers(features)
        losses = head.losses(scores, targets)
        if (targets == self.ignore_value).all():  # Detectron2's mean over no pixels is NaN
            losses = {name: zero_loss(scores) for name in losses}
        return scores, losses

    def _refine(
        self, coarse: torch.Tensor, features: Dict[str, torch.Tensor]
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Returns the propagated features and the refined logits."""
        raw_gates = self.guidance(features)
        ratio = self._wrapped[0].common_stride // self.guidance.stride
        fine = enlarge_maps(coarse, ratio, raw_gates.shape[-2:])
        propagated = self.propagation.propagate(fine, raw_gates)
        return propagated, self.propagation.refine(fine, propagated)
