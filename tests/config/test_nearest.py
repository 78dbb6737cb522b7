"""Unknown keys and components are answered with the nearest known ones."""

import pytest

from rpe_d2.config import check_registered_names
from rpe_d2.config.nearest import nearest
from rpe_d2.engine.setup import read_config
from rpe_d2.utils.errors import one_line
from tests.helpers.keys import as_yaml, new_cfg, set_key


@pytest.mark.parametrize(
    "name, similar",
    [
        ("MODEL.RPE.STRID", "MODEL.RPE.STRIDE"),
        ("RPE.MARGIN", "MODEL.RPE.MARGIN"),
        ("MODEL.SPN.MARGIN", "MODEL.RPE.MARGIN"),
        ("SOLVER.EMA.DECAI", "SOLVER.EMA.DECAY"),
        ("MODEL.META_ARCHITECTUR", "MODEL.META_ARCHITECTURE"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_ones(name, similar, load, tmp_path):
    (tmp_path / "config.yaml").write_text(as_yaml({name: 1}))
    with pytest.raises(KeyError) as error:
        load(tmp_path / "config.yaml")
    line = one_line(error.value)
    node = name if name.partition(".")[0] in new_cfg() else name.partition(".")[0]
    assert line.startswith(f"Non-existent config key: {node}; the nearest known keys: ")
    if node == name:
        assert similar in line
    (tmp_path / "config.yaml").write_text("SEED: 5")
    with pytest.raises(KeyError) as error:
        read_config(str(tmp_path / "config.yaml"), [name, "1"])
    line = one_line(error.value)
    assert line.startswith(f"Non-existent config key: {name}; the nearest known keys: ")
    assert similar in line


@pytest.mark.parametrize(
    "name, value, similar",
    [
        ("MODEL.META_ARCHITECTURE", "PixelEmbedingNet", "PixelEmbeddingNet"),
        ("MODEL.BACKBONE.NAME", "build_guided_bakbone", "build_guided_backbone"),
        ("MODEL.GUIDED_BACKBONE.NAME", "build_resnet_fpn", "build_resnet_fpn_backbone"),
        ("MODEL.SPATIAL_TRANSFORMER.NAME", "build_resnet_fpn", "build_resnet_fpn_backbone"),
        ("MODEL.SPATIAL_TRANSFORMER.NAME", None, "_backbone"),
        ("MODEL.PROPOSAL_GENERATOR.NAME", "DeepMsk", "DeepMask"),
        ("MODEL.ROI_HEADS.NAME", "MNCHeads", "MNCROIHeads"),
        ("MODEL.ROI_MASK_HEAD.NAME", "SPNHead", "SPNMaskHead"),
        ("MODEL.SEM_SEG_HEAD.NAME", "FCN", "FCNHead"),
        ("MODEL.SPN.SEM_SEG_HEAD", "SemSegFPN", "SemSegFPNHead"),
    ],
)
def test_an_unregistered_component_is_answered_with_the_nearest_ones(name, value, similar):
    cfg = new_cfg()
    check_registered_names(cfg)
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "PrecomputedProposals"
    check_registered_names(cfg)
    set_key(cfg, name, value)
    with pytest.raises(ValueError) as error:
        check_registered_names(cfg)
    start = f"{name} is {value!r}, which is not registered; nearest: "
    assert str(error.value).startswith(start) and similar in str(error.value)


def test_a_value_without_key_is_yacs_own_error():
    with pytest.raises(AssertionError, match="odd length"):
        new_cfg().merge_from_list(["SEED"])


def test_nearest_prefers_the_same_last_part():
    known = ["MODEL.RPE.MARGIN", "MODEL.SPN.STRIDE", "MODEL.SPN.NORM"]
    assert nearest("MODEL.SPN.MARGIN", known, count=1) == "MODEL.RPE.MARGIN"
    assert nearest("MARGIN", known, count=1) == "MODEL.RPE.MARGIN"
    assert nearest("MODEL.SPN.NORMS", known, count=1) == "MODEL.SPN.NORM"
