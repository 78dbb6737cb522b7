"""The table of the components that rpe_d2 adds to Detectron2's registries."""

import inspect
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Tuple

import detectron2.modeling
from fvcore.common.registry import Registry

import rpe_d2  # noqa: F401  registers the components
from dev.papers.links import ROOT, config_link, file_link
from dev.result_tables import markdown_table


class Component(NamedTuple):
    """What the table shows of a component.

    Attributes:
        source: the paper.
        test: its test, below tests/.
        config: a configuration that uses it, below configs/.
        changes: overrides that the configuration needs for it.
    """

    source: str
    test: str
    config: str
    changes: str = ""


_OWN = "this project"
_RPE, _SPN = "Kong & Fowlkes, CVPR 2018", "Liu et al., NIPS 2017"
_MNC = "paper/mnc_coco.yaml"
_SPN_MASKS = "spn/mask_rcnn_spn_coco.yaml"
_WINDOWS, _SEMANTIC = "baselines/test_window_proposals.py", "baselines/test_semantic_heads.py"

COMPONENTS: Dict[str, Component] = {
    # META_ARCH
    "PixelEmbeddingNet": Component(
        _RPE, "modeling/test_pixel_embedding_net.py", "paper/rpe_voc.yaml"
    ),
    "BoundaryEmbeddingNet": Component(
        _RPE, "modeling/test_boundary_embedding_net.py", "boundary/bsds_R_18.yaml"
    ),
    "SPNRefiner": Component(_SPN, "modeling/test_spn_refiner.py", "paper/spn_voc.yaml"),
    "LabelPropagationNet": Component(
        f"{_OWN}, after {_SPN}", "modeling/test_label_propagation_net.py", "spn/refiner.yaml"
    ),
    "TemporalPropagationNet": Component(
        "Liu et al., ECCV 2018", "modeling/test_temporal_propagation_net.py", "spn/tpn.yaml"
    ),
    # PROPOSAL_GENERATOR
    "MeanShiftProposalGenerator": Component(
        _RPE,
        "modeling/test_mean_shift_proposal_generator.py",
        "paper/rpe_voc_proposals.yaml",
    ),
    "DeepMask": Component("Pinheiro et al., NIPS 2015", _WINDOWS, "paper/deepmask_coco.yaml"),
    "SharpMask": Component(
        "Pinheiro et al., ECCV 2016",
        "baselines/test_sharp_mask.py",
        "baselines/sharpmask_coco.yaml",
    ),
    "InstanceFCN": Component(
        "Dai et al., ECCV 2016",
        _WINDOWS,
        "paper/instance_fcn_voc.yaml",
    ),
    "MNCRPN": Component("Dai et al., CVPR 2016", "baselines/test_mnc.py", _MNC),
    "PrecomputedMaskProposals": Component(
        f"{_OWN}, for Hariharan et al.",
        "modeling/test_precomputed_mask_proposals.py",
        "baselines/sds_voc.yaml",
        "MODEL.PROPOSAL_GENERATOR.NAME PrecomputedMaskProposals",
    ),
    # ROI_HEADS
    "MNCROIHeads": Component("Dai et al., CVPR 2016", "baselines/test_mnc.py", _MNC),
    "FCISROIHeads": Component(
        "Li et al., CVPR 2017", "baselines/test_fcis.py", "baselines/fcis_voc.yaml"
    ),
    "SDSROIHeads": Component(
        "Hariharan et al., ECCV 2014", "baselines/test_sds.py", "baselines/sds_voc.yaml"
    ),
    "GuidedROIHeads": Component(
        f"{_OWN}, for {_SPN}", "modeling/test_spn_mask_head.py", _SPN_MASKS
    ),
    "GuidedCascadeROIHeads": Component(
        f"{_OWN}, for {_SPN}",
        "modeling/test_spn_mask_head.py",
        _SPN_MASKS,
        "MODEL.ROI_HEADS.NAME GuidedCascadeROIHeads "
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG True",
    ),
    # ROI_MASK_HEAD
    "SPNMaskHead": Component(_SPN, "modeling/test_spn_mask_head.py", _SPN_MASKS),
    "HypercolumnMaskHead": Component(
        "Hariharan et al., CVPR 2015",
        "baselines/test_hypercolumn.py",
        "baselines/hypercolumn_voc.yaml",
    ),
    # SEM_SEG_HEADS
    "EmbeddingSemSegHead": Component(
        _RPE, "modeling/test_semantic_heads.py", "semantic/embedding_voc.yaml"
    ),
    "SPNSemSegHead": Component(
        _SPN, "modeling/test_spn_sem_seg_head.py", "spn/sem_seg_spn_shapes.yaml"
    ),
    "FCNHead": Component("Long et al., CVPR 2015", _SEMANTIC, "semantic/fcn_8s_voc.yaml"),
    "DeconvNetHead": Component("Noh et al., ICCV 2015", _SEMANTIC, "semantic/deconvnet_voc.yaml"),
    "MultiScaleSemSegHead": Component(
        "Farabet et al., PAMI 2013",
        _SEMANTIC,
        "paper/multi_scale_stanford.yaml",
    ),
    "RecurrentConvSemSegHead": Component(
        "Pinheiro & Collobert, ICML 2014",
        _SEMANTIC,
        "paper/rcnn2_stanford.yaml",
    ),
    # BACKBONE
    "build_guided_backbone": Component(
        f"{_OWN}, for {_SPN}", "modeling/test_guided_backbone.py", _SPN_MASKS
    ),
    "build_image_backbone": Component(
        f"{_OWN}, for Pinheiro & Collobert",
        "baselines/test_recurrent_patches.py",
        "paper/rcnn2_stanford.yaml",
    ),
    "build_filter_bank_backbone": Component(
        "Farabet et al., PAMI 2013",
        "baselines/test_filter_bank.py",
        "paper/multi_scale_stanford.yaml",
    ),
    "build_spatial_transformer_backbone": Component(
        "Jaderberg et al., NIPS 2015",
        "modeling/test_spatial_transformer.py",
        "baselines/mask_rcnn_coco.yaml",
        "MODEL.BACKBONE.NAME build_spatial_transformer_backbone",
    ),
    "build_vgg16_backbone": Component(
        "Simonyan & Zisserman, ICLR 2015",
        "baselines/test_vgg16.py",
        "semantic/fcn_8s_voc.yaml",
    ),
    "build_dilated_resnet_backbone": Component(
        "Chen et al., PAMI 2018", "modeling/test_dilated_resnet.py", "paper/rpe_voc.yaml"
    ),
    "build_short_resnet_fpn_backbone": Component(
        "Lin et al., CVPR 2017, without res5",
        "modeling/test_fpn.py",
        "quickstart/rpe_shapes.yaml",
    ),
    "build_timm_backbone": Component(
        "Tan & Le, ICML 2019, and others of timm",
        "modeling/test_timm_backbone.py",
        "paper/spn_voc_efficientnet_lite0.yaml",
    ),
    "build_timm_fpn_backbone": Component(
        "Lin et al., CVPR 2017, on timm",
        "modeling/test_timm_backbone.py",
        "rpe_coco.yaml",
        "MODEL.BACKBONE.NAME build_timm_fpn_backbone",
    ),
}


def registered_components() -> List[Tuple[str, str, Any]]:
    """Returns registry, name and object of everything that rpe_d2 registers in Detectron2."""
    registries = [value for value in vars(detectron2.modeling).values() if type(value) is Registry]
    return sorted(
        (registry._name, name, found)
        for registry in registries
        for name, found in registry
        if found.__module__.startswith("rpe_d2.")
    )


def components_table() -> str:
    """Returns a row for each registered component, whose name links to its file.

    Raises:
        ValueError: A component has no entry in ``COMPONENTS``.
    """
    rows = []
    for registry, name, found in registered_components():
        if name not in COMPONENTS:
            raise ValueError(f"{name} has no entry in COMPONENTS of dev/papers/components.py")
        entry = COMPONENTS[name]
        source = Path(inspect.getsourcefile(found)).resolve().relative_to(ROOT).as_posix()
        config = config_link(entry.config, entry.changes)
        test = file_link(f"tests/{entry.test}")
        rows.append([f"[`{name}`](../{source})", registry, entry.source, test, config])
    return markdown_table(["component", "registry", "paper", "test", "configuration"], rows)
