"""A semantic head that refines another one's scores by spatial propagation."""

from typing import Dict, Optional, Tuple, Union

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import nn
from torch.nn import functional as F

from ..backbone.guided_backbone import freeze, is_frozen
from ..embedding.pixel_losses import SemanticPairLoss, build_semantic_pair_loss, mean_cross_entropy
from ..layers import adopt_children, enlarge_maps
from ..spn import (
    SMALL_GATES,
    GuidanceNetwork,
    ProbabilityPropagation,
    PropagationHead,
    PropagationOptions,
    build_guidance,
)


@SEM_SEG_HEADS_REGISTRY.register()
class SPNSemSegHead(nn.Module):
    """The head named in ``MODEL.SPN.SEM_SEG_HEAD``, and two propagation units on its scores (Liu et al., NIPS 2017).

    An embedding of the scores is propagated, as in the paper, and what comes of it added to them: nothing at first. With
    ``MODEL.SPN.CHANNELS`` 0 it is the classes' probabilities themselves, which hardly change at first; scores are then
    their logarithms. The refined head's parameters keep their names, so that its checkpoints load.

    Losses stand before (all of that head's own) and after refinement ("loss_sem_seg_refined"). At inference only
    classes that win somewhere before refinement may win after it, as in the paper. The pair loss of
    ``MODEL.SEM_SEG_HEAD`` acts on what is propagated. With ``MODEL.SPN.FREEZE_HEAD`` that head stays as it was trained
    and has no losses.
    """

    has_pair_loss = True

    @configurable
    def __init__(
        self,
        *,
        head: nn.Module,
        guidance: GuidanceNetwork,
        propagation: Union[PropagationHead, ProbabilityPropagation],
        ignore_value: int,
        refined_loss_weight: float,
        pair_loss: Optional[SemanticPairLoss] = None,
        freeze_head: bool = False,
    ):
        """
        Args:
            head: with ``layers(features)``, scores (B, K, H / s, W / s), ``losses(scores, targets)`` and
                ``common_stride`` s, as Detectron2's; where it has ``scores_and_losses(features, targets)``, as this
                package's, that is used in training.
            guidance: on the backbone's maps.
            propagation: of K maps.
            ignore_value: label without loss.
            refined_loss_weight: of the loss after refinement.
            pair_loss: on a branch of the propagated maps; None: without.
            freeze_head: do not train ``head``.

        Raises:
            ValueError: the head lacks one of these, or is finer than the guidance.
        """
        super().__init__()
        for name in ("layers", "losses", "common_stride"):
            if not hasattr(head, name):
                raise ValueError(
                    f"MODEL.SPN.SEM_SEG_HEAD is {type(head).__name__}, which has no {name!r}; allowed: heads like "
                    "SemSegFPNHead"
                )
        if head.common_stride % guidance.stride:
            raise ValueError(
                f"MODEL.SPN.STRIDE is {guidance.stride}; allowed: at most {head.common_stride}, the stride of "
                f"{type(head).__name__}"
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
    def check_run(cls, cfg: CfgNode, has_weights: bool) -> None:
        if cfg.MODEL.SPN.FREEZE_HEAD and not has_weights:
            raise ValueError(
                "MODEL.WEIGHTS is empty; MODEL.SPN.FREEZE_HEAD keeps a trained head, name its checkpoint"
            )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]):
        name = cfg.MODEL.SPN.SEM_SEG_HEAD
        if name == cls.__name__ or name not in SEM_SEG_HEADS_REGISTRY:
            raise ValueError(
                f"MODEL.SPN.SEM_SEG_HEAD is {name!r}; allowed: the name of another registered head, SemSegFPNHead"
            )
        if cfg.MODEL.SPN.FREEZE_HEAD and not is_frozen(cfg):
            raise ValueError(
                "MODEL.SPN.FREEZE_HEAD is True, and the backbone below that head is trained; allowed: with "
                "MODEL.BACKBONE.NAME build_guided_backbone and MODEL.GUIDED_BACKBONE.FREEZE True"
            )
        options = PropagationOptions.from_config(cfg)
        num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        channels = cfg.MODEL.SPN.CHANNELS
        if channels:
            propagation, bias = PropagationHead(num_classes, channels, options), 0.0
        else:
            propagation, bias = ProbabilityPropagation(num_classes, options), SMALL_GATES
        head = SEM_SEG_HEADS_REGISTRY.get(name)
        pair_loss = build_semantic_pair_loss(cfg, getattr(head, "usual_pair_weight", 0.0))
        coarse_cfg = cfg.clone()
        coarse_cfg.defrost()
        coarse_cfg.MODEL.SEM_SEG_HEAD.PAIR_LOSS_WEIGHT = 0.0  # once is enough
        return {
            "head": head(coarse_cfg, input_shape),
            "guidance": build_guidance(cfg, input_shape, propagation.num_gates, bias),
            "propagation": propagation,
            "ignore_value": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            "refined_loss_weight": cfg.MODEL.SPN.LOSS_WEIGHT,
            "pair_loss": pair_loss,
            "freeze_head": cfg.MODEL.SPN.FREEZE_HEAD,
        }

    def train(self, mode: bool = True) -> "SPNSemSegHead":
        super().train(mode)
        self._wrapped[0].train(mode and not self.freeze_head)  # its children are this module's, too
        return self

    def forward(
        self, features: Dict[str, torch.Tensor], targets: Optional[torch.Tensor] = None
    ) -> Tuple[Optional[torch.Tensor], Dict[str, torch.Tensor]]:
        """
        Args:
            features: the backbone's maps.
            targets: in training (B, H, W) int64 classes.

        Returns:
            In training None and the losses; else scores (B, K, H', W') and {}, H' and W' the padded picture's or,
            where that is no multiple of the stride, more.
        """
        losses: Dict[str, torch.Tensor] = {}
        if self.training:
            coarse, losses = self._coarse(features, targets)
        else:
            coarse = self._wrapped[0].layers(features)
        coarse = coarse.float()
        propagated, refined = self._refine(coarse, features)
        stride = self.guidance.stride
        refined = F.interpolate(refined, scale_factor=stride, mode="bilinear", align_corners=False)
        if not self.training:
            return _only_present(refined, coarse), losses
        height, width = targets.shape[-2:]
        loss = mean_cross_entropy(refined[..., :height, :width], targets, self.ignore_value)
        losses["loss_sem_seg_refined"] = loss * self.refined_loss_weight
        if self.pair_loss is not None:
            losses.update(self.pair_loss(self.embedding(propagated), stride, targets))
        return None, losses

    def _coarse(
        self, features: Dict[str, torch.Tensor], targets: torch.Tensor
    ) -> Tuple[torch.Tensor, Dict[str, torch.Tensor]]:
        """Scores and losses of the wrapped head, frozen scores alone."""
        head = self._wrapped[0]
        if self.freeze_head:
            return head.layers(features).detach(), {}
        if hasattr(head, "scores_and_losses"):
            return head.scores_and_losses(features, targets)
        scores = head.layers(features)
        losses = head.losses(scores, targets)
        if (targets == self.ignore_value).all():  # Detectron2's mean over no pixel is NaN
            losses = {name: scores.sum() * 0.0 for name in losses}
        return scores, losses

    def _refine(
        self, coarse: torch.Tensor, features: Dict[str, torch.Tensor]
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Propagated maps, and scores after refinement."""
        raw_gates = self.guidance(features)
        ratio = self._wrapped[0].common_stride // self.guidance.stride
        fine = enlarge_maps(coarse, ratio, raw_gates.shape[-2:])
        propagated = self.propagation.features(fine, raw_gates)
        return propagated, self.propagation.refined(fine, propagated)


def _only_present(scores: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
    """Scores in which only classes with the best coarse score somewhere can be best."""
    best = coarse.argmax(dim=1).flatten(1)  # (B, h * w)
    present = torch.zeros(coarse.shape[:2], dtype=torch.bool, device=coarse.device)
    present.scatter_(1, best, True)
    lowest = scores.amin(dim=(1, 2, 3), keepdim=True) - 1
    return torch.where(present[:, :, None, None], scores, lowest)
