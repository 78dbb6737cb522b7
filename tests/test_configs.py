"""Every configuration builds its model, and those that are compared differ in nothing else."""

import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from rpe_d2.engine.setup import read_config
from tests.conftest import ROOT
from tests.helpers.models import training_input

CONFIGS = ROOT / "configs"
LEAVES = sorted(
    str(path.relative_to(CONFIGS))
    for path in CONFIGS.rglob("*.yaml")
    if not path.name.startswith("Base-")
)


def read(name: str) -> CfgNode:
    return read_config(str(CONFIGS / name), ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])


@pytest.mark.parametrize("name", LEAVES)
def test_it_builds_its_model(name):
    cfg = read(name)
    model = build_model(cfg)
    # The smallest one is the recurrent network of Pinheiro & Collobert, by far.
    assert sum(parameter.numel() for parameter in model.parameters()) > 9e4
    assert cfg.DATASETS.TRAIN and cfg.DATASETS.TEST and cfg.SOLVER.MAX_ITER > 0
    outputs = [read(other).OUTPUT_DIR for other in LEAVES]
    assert outputs.count(cfg.OUTPUT_DIR) == 1


@pytest.mark.parametrize("name", [name for name in LEAVES if "voc" in name])
def test_vgg_sees_what_torchvisions_weights_were_trained_on(name):
    cfg = read(name)
    if cfg.MODEL.BACKBONE.NAME != "build_vgg16_backbone":
        pytest.skip("another backbone")
    assert cfg.INPUT.FORMAT == "RGB"
    assert cfg.MODEL.PIXEL_MEAN == [123.675, 116.28, 103.53]
    assert cfg.MODEL.PIXEL_STD == [58.395, 57.12, 57.375]


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in LEAVES
        # Those of VOC add nothing to those of COCO but the data or VGG-16, as does the paper's MNC.
        if name.startswith("paper/")
        and name != "paper/mnc_coco.yaml"
        or name.startswith(("baselines/", "proposals/", "semantic/"))
        and not name.endswith("_voc.yaml")
    ],
)
def test_parameters_without_gradient_are_looked_for(name):
    """Otherwise distributed training fails in the second step."""
    cfg = read(name)
    torch.manual_seed(0)
    model = build_model(cfg).train()
    patches = cfg.INPUT.DATASET_MAPPER_NAME == "WindowCropMapper"
    side = cfg.INPUT.CROP.SIZE[0] if patches else 128
    item = training_input((side, side), ((4, 4, 64, 64), (64, 64, 124, 124)), (0, 0))
    item["sem_seg"] = torch.zeros(side, side, dtype=torch.int64)
    item["sem_seg"][4:64, 4:64] = 1
    if cfg.MODEL.META_ARCHITECTURE == "SPNRefiner":
        item["coarse_sem_seg"] = torch.rand(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, 128, 128)
    with EventStorage():
        sum(model([item]).values()).backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without or cfg.SOLVER.FIND_UNUSED_PARAMETERS, without


def bases(path) -> list:
    """The chain of files that a configuration is based on, the nearest first."""
    base = yaml.safe_load(path.read_text()).get("_BASE_")
    if base is None:
        return []
    return [path.parent / base, *bases(path.parent / base)]


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.name)
def test_a_comment_says_what_it_is_for_and_bases_are_few(path):
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert len(bases(path)) <= 3
    assert all(len(line) <= 100 for line in lines)


def flat(node: CfgNode, prefix: str = "") -> dict:
    values = {}
    for key, value in node.items():
        if isinstance(value, CfgNode):
            values.update(flat(value, f"{prefix}{key}."))
        else:
            values[prefix + key] = value
    return values


# Keys in which systems may differ: their heads, their suppression, their sampling of regions.
MNC = (
    "MODEL.PROPOSAL_GENERATOR.NAME",
    "MODEL.MNC.",
    "MODEL.ROI_HEADS.NAME",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE",
    "MODEL.ROI_HEADS.POSITIVE_FRACTION",
    "MODEL.ROI_HEADS.NMS_THRESH_TEST",
)
FCIS = (
    "MODEL.FCIS.",
    "MODEL.ROI_HEADS.NAME",
    "MODEL.ROI_HEADS.IN_FEATURES",
    "MODEL.ROI_HEADS.NMS_THRESH_TEST",
)
# On COCO also the number of regions, and the dilated backbone of FCIS.
TOP_300 = ("MODEL.RPN.", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE")
ON_RES5 = ("MODEL.BACKBONE.NAME", "MODEL.RESNETS.", "MODEL.ANCHOR_GENERATOR.")
# Window generators also differ in their pyramid and in the sizes of the image.
WINDOWS = (
    "MODEL.PROPOSAL_GENERATOR.NAME",
    "MODEL.DEEPMASK.",
    "MODEL.INSTANCE_FCN.",
    "MODEL.BACKBONE.NAME",
    "MODEL.GUIDED_BACKBONE.",
    "MODEL.RESNETS.NORM",
    "SOLVER.FIND_UNUSED_PARAMETERS",
)
# DeepMask and InstanceFCN do not read the keys of the proposals by mean shift.
WINDOWS_AND_GROUPING = (*WINDOWS, "MODEL.RPE.PROPOSALS.")
WINDOWS_OF_COCO = (
    *WINDOWS,
    "MODEL.META_ARCHITECTURE",
    "MODEL.RESNETS.OUT_FEATURES",
    "INPUT.MIN_SIZE_",
    "INPUT.MAX_SIZE_",
)


def test_as_many_regions_of_nuclei_are_sampled():
    names = ("nuclei/mask_rcnn_R_18", *(f"baselines/{n}_nuclei" for n in ("mnc", "fcis", "sds")))
    assert {read(f"{n}.yaml").MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE for n in names} == {128}


def test_as_many_proposals_of_shapes_are_evaluated():
    keys = {
        "proposals/rpn_shapes": "RPN",
        "baselines/deepmask_shapes": "DEEPMASK",
        "baselines/sharpmask_shapes": "DEEPMASK",
        "baselines/instance_fcn_shapes": "INSTANCE_FCN",
    }
    counts = [read(f"{n}.yaml").MODEL[key].POST_NMS_TOPK_TEST for n, key in keys.items()]
    assert counts == [1000] * 4


@pytest.mark.parametrize(
    "one, other, allowed",
    [
        (
            "rpe_rcnn_coco.yaml",
            "baselines/mask_rcnn_coco.yaml",
            ("MODEL.PROPOSAL_GENERATOR.", "MODEL.RPE.", "MODEL.MEAN_SHIFT."),
        ),
        (
            "proposals/mask_rcnn_rpe_shapes.yaml",
            "proposals/mask_rcnn_rpn_shapes.yaml",
            ("MODEL.PROPOSAL_GENERATOR.", "MODEL.RPE."),
        ),
        (
            "proposals/rpe_shapes.yaml",
            "proposals/rpn_shapes.yaml",
            ("MODEL.PROPOSAL_GENERATOR.", "MODEL.RPN.", "MODEL.ANCHOR_GENERATOR."),
        ),
        (
            "nuclei/rpe_R_18.yaml",
            "nuclei/semantic_control.yaml",
            ("MODEL.RPE.GROUPING", "MODEL.RPE.PAIR_LOSS_WEIGHT", "MODEL.RPE.VOTE_LOSS_WEIGHT"),
        ),
        *(
            (f"baselines/{system}_{data}.yaml", detector, allowed)
            for data, detector in (
                ("shapes", "proposals/mask_rcnn_rpn_shapes.yaml"),
                ("nuclei", "nuclei/mask_rcnn_R_18.yaml"),
                ("coco", "baselines/mask_rcnn_coco.yaml"),
            )
            for system, allowed in (
                ("hypercolumn", ("MODEL.ROI_MASK_HEAD.", "MODEL.HYPERCOLUMN.")),
                ("mnc", MNC if data != "coco" else (*MNC, *TOP_300, "SOLVER.AMP.PRECISION")),
                ("fcis", FCIS if data != "coco" else (*FCIS, *TOP_300, *ON_RES5)),
            )
        ),
        *(
            (one, other, ("MODEL.ROI_HEADS.NAME", "MODEL.PROPOSAL_GENERATOR.MASKS_IN_TRAINING"))
            for one, other in (
                ("baselines/sds_shapes.yaml", "proposals/mask_rcnn_rpe_shapes.yaml"),
                ("baselines/sds_coco.yaml", "rpe_rcnn_coco.yaml"),
            )
        ),
        (
            "baselines/sds_nuclei.yaml",
            "nuclei/mask_rcnn_R_18.yaml",
            (
                "MODEL.ROI_HEADS.NAME",
                "MODEL.ROI_BOX_HEAD.FC_DIM",
                "MODEL.ROI_MASK_HEAD.",
                "MODEL.BACKBONE.NAME",
                *(
                    "MODEL.PROPOSAL_GENERATOR.",
                    "MODEL.RPE.",
                    "MODEL.RPN.",
                    "MODEL.ANCHOR_GENERATOR.",
                ),
            ),
        ),
        *(
            (f"baselines/{system}_{data}.yaml", f"proposals/rpe_{data}.yaml", WINDOWS_AND_GROUPING)
            for system in ("deepmask", "instance_fcn")
            for data in ("shapes", "nuclei")
        ),
        *(
            (f"baselines/{system}_coco.yaml", "rpe_coco.yaml", WINDOWS_OF_COCO)
            for system in ("deepmask", "instance_fcn")
        ),
        *(
            (
                f"baselines/sharpmask_{data}.yaml",
                f"baselines/deepmask_{data}.yaml",
                (
                    "MODEL.PROPOSAL_GENERATOR.NAME",
                    "MODEL.GUIDED_BACKBONE.",
                    "MODEL.RESNETS.OUT_FEATURES",
                ),
            )
            for data in ("shapes", "nuclei", "coco")
        ),
    ],
)
def test_compared_configurations_differ_in_nothing_else(one, other, allowed):
    first, second = flat(read(one)), flat(read(other))
    different = {key for key in first if first[key] != second[key]} - {"OUTPUT_DIR"}
    assert different and all(key.startswith(allowed) for key in different), different
