"""Region proposals from files, in place of a network that makes proposals."""

from typing import Dict, Tuple

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator.build import PROPOSAL_GENERATOR_REGISTRY

_KEY = "MODEL.PROPOSAL_GENERATOR.NAME is PrecomputedMaskProposals"


@PROPOSAL_GENERATOR_REGISTRY.register()
class PrecomputedMaskProposals:
    """Takes proposals with masks, such as those of MCG, from the inputs of the model.

    ``DATASETS.PROPOSAL_MASKS_TRAIN`` and ``DATASETS.PROPOSAL_MASKS_TEST`` name the files, and
    :class:`rpe_d2.data.ImageMapper` adds the regions of an image to its dict as "proposals":
    ``proposal_boxes``, ``objectness_logits`` and, at inference or with
    ``MODEL.PROPOSAL_GENERATOR.MASKS_IN_TRAINING``, ``proposal_masks`` (N, M, M) uint8 relative to
    the boxes, with M from ``MODEL.RPE.PROPOSAL_MASK_SIZE``.

    A proposal generator never sees the inputs, but Detectron2's R-CNN takes their "proposals" if it
    has no generator. Therefore calling this class returns None, as Detectron2's own name
    PrecomputedProposals does. That name reads boxes alone.
    """

    def __new__(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]) -> None:
        if cfg.MODEL.META_ARCHITECTURE == "ProposalNetwork":
            raise ValueError(
                f"{_KEY}, and MODEL.META_ARCHITECTURE is ProposalNetwork; allowed: GeneralizedRCNN"
                " or PanopticFPN. rpe-d2 precompute-proposals --evaluate computes the recall of "
                "regions"
            )
        return None

    @classmethod
    def inference_inputs(cls, cfg: CfgNode) -> Tuple[str, ...]:
        """Returns the inputs besides images that the model needs at inference."""
        return ("proposals",)

    @classmethod
    def check_run(cls, cfg: CfgNode, has_weights: bool) -> None:
        """Raises a ValueError if a data set has no file of regions."""
        entries = {part: cfg.DATASETS[f"PROPOSAL_MASKS_{part}"] for part in ("TRAIN", "TEST")}
        named = {entry.partition("=")[0] for part in entries.values() for entry in part}
        if not named:
            raise ValueError(
                f"DATASETS.PROPOSAL_MASKS_TRAIN and _TEST are empty; {_KEY}, which needs entries "
                "name=path.json"
            )
        for part, own in entries.items():
            missing = [name for name in cfg.DATASETS[part] if name not in named]
            # An evaluation may leave out the files of training.
            if missing and (own or part == "TEST"):
                raise ValueError(
                    f"DATASETS.PROPOSAL_MASKS_{part} has no entry for {', '.join(missing)} of "
                    f"DATASETS.{part}; allowed: name=path.json for each"
                )
