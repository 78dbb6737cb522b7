"""What models declare, and what is tabulated for Detectron2's own."""

import pytest
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN

from rpe_d2 import add_rpe_config
from rpe_d2.data import BoundaryMapper, ImageMapper, PixelLabelMapper
from rpe_d2.engine import Trainer, host_models
from rpe_d2.inference.predictor import check_needs_only_pictures


def config(text: str):
    """Detectron2's defaults and this package's with YAML merged into them."""
    cfg = get_cfg()
    add_rpe_config(cfg)
    cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(text)))
    return cfg


PIXEL_EMBEDDING_NET = "MODEL: {META_ARCHITECTURE: PixelEmbeddingNet}"
KMEANS = "MODEL: {META_ARCHITECTURE: PixelEmbeddingNet, RPE: {GROUPING: kmeans}}"
BOUNDARIES = "MODEL: {META_ARCHITECTURE: BoundaryEmbeddingNet}"
REFINER = "MODEL: {META_ARCHITECTURE: SPNRefiner}"
CLASS_REFINER = "MODEL: {META_ARCHITECTURE: SPNRefiner, SPN: {NETWORK: classes}}"
SPARSE = "MODEL: {META_ARCHITECTURE: SPNRefiner, SPN: {NETWORK: sparse_labels}}"
FASTER_RCNN = "MODEL: {META_ARCHITECTURE: GeneralizedRCNN}"
MASK_RCNN = "MODEL: {META_ARCHITECTURE: GeneralizedRCNN, MASK_ON: True}"
FAST_RCNN = "MODEL: {PROPOSAL_GENERATOR: {NAME: PrecomputedProposals}}"
MEAN_SHIFT_RCNN = "MODEL: {PROPOSAL_GENERATOR: {NAME: MeanShiftProposalGenerator}}"
DEEP_MASK = "MODEL: {META_ARCHITECTURE: ProposalNetwork, PROPOSAL_GENERATOR: {NAME: DeepMask}}"
RETINANET = "MODEL: {META_ARCHITECTURE: RetinaNet}"
PANOPTIC = "MODEL: {META_ARCHITECTURE: PanopticFPN, MASK_ON: True}"
SEMANTIC = "MODEL: {META_ARCHITECTURE: SemanticSegmentor}"
UNKNOWN = "MODEL: {META_ARCHITECTURE: Unknown}"


@pytest.mark.parametrize(
    "text, mapper",
    [
        (PIXEL_EMBEDDING_NET, PixelLabelMapper),
        (REFINER, PixelLabelMapper),
        (BOUNDARIES, BoundaryMapper),
        (FASTER_RCNN, ImageMapper),
        (MASK_RCNN, PixelLabelMapper),
        (MEAN_SHIFT_RCNN, PixelLabelMapper),
        (DEEP_MASK, PixelLabelMapper),
        (RETINANET, ImageMapper),
        (UNKNOWN, ImageMapper),
    ],
)
def test_models_get_the_mapper_that_they_need(text, mapper):
    cfg = config(text)
    assert type(Trainer.build_train_mapper(cfg)) is mapper
    cfg.INPUT.DATASET_MAPPER_NAME = "BoundaryMapper"
    assert type(Trainer.build_train_mapper(cfg)) is BoundaryMapper


@pytest.mark.parametrize("name", ["", "DatasetMapper"])
def test_detectron2s_mapper_gets_the_additional_augmentations(name):
    cfg = config("INPUT: {QUARTER_TURNS: True, RANDOM_FLIP: none}")
    cfg.INPUT.DATASET_MAPPER_NAME = name
    names = [type(a).__name__ for a in Trainer.build_train_mapper(cfg).augmentations.augs]
    assert names == ["ResizeShortestEdge", "RandomQuarterTurn"]
    assert not Trainer.build_train_mapper(cfg, augmentations=[]).augmentations.augs


def test_an_unknown_mapper_is_refused_with_the_allowed_ones():
    cfg = config("INPUT: {DATASET_MAPPER_NAME: Mapper}")
    allowed = (
        "'', BoundaryMapper, DatasetMapper, FramePairMapper, ImageMapper, PatchMapper, "
        "PixelLabelMapper"
    )
    message = f"INPUT.DATASET_MAPPER_NAME is 'Mapper'; allowed: {allowed}"
    with pytest.raises(ValueError, match=message):
        Trainer.build_train_mapper(cfg)


@pytest.mark.parametrize(
    "text, keys",
    [
        (PIXEL_EMBEDDING_NET, {"thing": "MODEL.RPE.NUM_CLASSES"}),
        (MASK_RCNN, {"thing": "MODEL.ROI_HEADS.NUM_CLASSES"}),
        (RETINANET, {"thing": "MODEL.RETINANET.NUM_CLASSES"}),
        (SEMANTIC, {"stuff": "MODEL.SEM_SEG_HEAD.NUM_CLASSES"}),
        (
            PANOPTIC,
            {"thing": "MODEL.ROI_HEADS.NUM_CLASSES", "stuff": "MODEL.SEM_SEG_HEAD.NUM_CLASSES"},
        ),
        (DEEP_MASK, {}),
        (UNKNOWN, {}),
    ],
)
def test_keys_of_the_numbers_of_classes(text, keys):
    assert host_models.num_classes_keys(config(text)) == keys


@pytest.mark.parametrize(
    "text, inputs, message",
    [
        (PIXEL_EMBEDDING_NET, (), ""),
        (FASTER_RCNN, (), ""),
        (DEEP_MASK, (), ""),
        (KMEANS, ("num_instances",), "needs the true number of instances"),
        (REFINER, ("coarse_masks",), "SPNRefiner, which needs masks to refine"),
        (CLASS_REFINER, ("coarse_sem_seg",), "needs the class maps of another model, DATASETS.CO"),
        (SPARSE, ("sparse_labels",), "the labels of some pixels; rpe-d2 refine-masks --sparse"),
        (FAST_RCNN, ("proposals",), "needs files of proposals"),
    ],
)
def test_inputs_beside_images(text, inputs, message):
    cfg = config(text)
    assert host_models.inference_inputs(cfg) == inputs
    if not inputs:
        check_needs_only_pictures(cfg)
    else:
        with pytest.raises(ValueError, match=message):
            check_needs_only_pictures(cfg)


def test_what_is_drawn_and_evaluated():
    thresholds = [host_models.default_confidence_threshold(config(PIXEL_EMBEDDING_NET))]
    thresholds.append(host_models.default_confidence_threshold(config(MASK_RCNN)))
    assert thresholds == [0.3, 0.5]
    assert host_models.only_proposals(config(DEEP_MASK))
    assert not host_models.only_proposals(config(MASK_RCNN))


def test_an_unknown_input_is_refused_in_one_line():
    class DepthNet(GeneralizedRCNN):
        @classmethod
        def inference_inputs(cls, cfg):
            return ("depth", "num_instances")

    META_ARCH_REGISTRY.register(DepthNet)
    try:
        message = "^DepthNet.inference_inputs names depth; allowed: num_instances, coarse_masks"
        with pytest.raises(ValueError, match=message):
            host_models.inference_inputs(config("MODEL: {META_ARCHITECTURE: DepthNet}"))
    finally:
        del META_ARCH_REGISTRY._obj_map["DepthNet"]


def test_a_class_derived_from_detectron2s_inherits_what_is_known_of_it():
    class DerivedRCNN(GeneralizedRCNN):
        default_confidence_threshold = 0.7

    META_ARCH_REGISTRY.register(DerivedRCNN)
    try:
        cfg = config("MODEL: {META_ARCHITECTURE: DerivedRCNN}")
        names = [entry.__name__ for entry in host_models.model_classes(cfg)]
        assert names == ["DerivedRCNN", "RPN", "Res5ROIHeads"]
        assert host_models.num_classes_keys(cfg) == {"thing": "MODEL.ROI_HEADS.NUM_CLASSES"}
        assert host_models.default_confidence_threshold(cfg) == 0.7
    finally:
        del META_ARCH_REGISTRY._obj_map["DerivedRCNN"]
