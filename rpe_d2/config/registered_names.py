"""A check of the names of components before a model is built from them."""

from detectron2.config import CfgNode

from .nearest import nearest


def check_registered_names(cfg: CfgNode) -> None:
    """Checks that the components that a configuration names are registered.

    Raises:
        ValueError: The message is one line with the key, its value and the nearest names.
    """
    from detectron2 import modeling  # not needed by anything else that reads configurations

    model = cfg.MODEL
    for key, name, registry in (
        ("META_ARCHITECTURE", model.META_ARCHITECTURE, modeling.META_ARCH_REGISTRY),
        ("BACKBONE.NAME", model.BACKBONE.NAME, modeling.BACKBONE_REGISTRY),
        ("GUIDED_BACKBONE.NAME", model.GUIDED_BACKBONE.NAME, modeling.BACKBONE_REGISTRY),
        (
            "SPATIAL_TRANSFORMER.NAME",
            model.SPATIAL_TRANSFORMER.NAME,
            modeling.BACKBONE_REGISTRY,
        ),
        (
            "PROPOSAL_GENERATOR.NAME",
            model.PROPOSAL_GENERATOR.NAME,
            modeling.PROPOSAL_GENERATOR_REGISTRY,
        ),
        ("ROI_HEADS.NAME", model.ROI_HEADS.NAME, modeling.ROI_HEADS_REGISTRY),
        ("ROI_MASK_HEAD.NAME", model.ROI_MASK_HEAD.NAME, modeling.ROI_MASK_HEAD_REGISTRY),
        ("SEM_SEG_HEAD.NAME", model.SEM_SEG_HEAD.NAME, modeling.SEM_SEG_HEADS_REGISTRY),
        ("SPN.SEM_SEG_HEAD", model.SPN.SEM_SEG_HEAD, modeling.SEM_SEG_HEADS_REGISTRY),
    ):
        # Detectron2 handles PrecomputedProposals separately; it means that there is no generator.
        if name in registry or name in ("", "PrecomputedProposals"):
            continue
        similar = nearest(str(name), (known for known, _ in registry))
        raise ValueError(f"MODEL.{key} is {name!r}, which is not registered; nearest: {similar}")
