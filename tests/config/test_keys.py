"""The keys as data, and the checks of their values."""

import math
import re

import pytest
import yaml
from detectron2.config import CfgNode
from detectron2.config import get_cfg as get_detectron2_cfg
from detectron2.layers import get_norm

from rpe_d2.baselines import vgg16
from rpe_d2.config import all_keys, check_config
from rpe_d2.config.key import NORMS
from rpe_d2.engine import solver, train_step
from rpe_d2.modeling import boundary_head, boundary_loss
from rpe_d2.modeling.backbone import guided_backbone, spatial_transformer_backbone
from rpe_d2.modeling.embedding import grouping, head, mean_shift_layer, methods
from rpe_d2.modeling.meta_arch import pixel_embedding_net
from rpe_d2.ops import pair_loss, propagation
from tests.helpers.keys import as_yaml, flat, new_cfg, set_key

KEYS = {
    f"{node}.{name}".lstrip("."): key
    for node, keys in all_keys().items()
    for name, key in keys.items()
}


def test_there_are_at_most_216_keys():
    assert len(KEYS) <= 216


def test_the_keys_are_what_a_configuration_gains():
    host, cfg = dict(flat(get_detectron2_cfg())), dict(flat(new_cfg()))
    assert {name: cfg[name] for name in cfg if name not in host} == {
        name: key.default for name, key in KEYS.items()
    }
    assert all(cfg[name] == value for name, value in host.items())


@pytest.mark.parametrize("name", KEYS)
def test_a_key_has_a_meaning_a_type_and_a_range(name):
    key = KEYS[name]
    assert len(key.meaning) >= 10 and key.meaning.endswith(".")
    assert key.kind in (bool, int, float, str)
    if key.kind in (int, float):
        assert key.choices or (key.low is None) != (key.above is None)
        assert key.high is None or key.below is None
    key.check(name, key.default)


def test_defaults_are_not_shared_between_configurations():
    new_cfg().MODEL.VGG.OUT_FEATURES.append("fc7")
    assert "fc7" not in new_cfg().MODEL.VGG.OUT_FEATURES


@pytest.mark.parametrize(
    "name, choices",
    [
        ("MODEL.RPE.PAIR_LOSS_FORM", pair_loss.FORMS),
        ("MODEL.RPE.PAIR_LOSS_NORMALIZATION", pair_loss.NORMALIZATIONS),
        ("MODEL.RPE.STRIDE", head.STRIDES),
        ("MODEL.RPE.PROPOSALS.STRIDE", head.STRIDES),
        ("MODEL.RPE.LOSS", methods.METHODS),
        ("MODEL.RPE.GROUPING", grouping.GROUPINGS),
        ("MODEL.RPE.REFINE", pixel_embedding_net.REFINEMENTS),
        ("MODEL.MEAN_SHIFT.BANDWIDTH_MODE", mean_shift_layer.BANDWIDTH_MODES),
        ("MODEL.GUIDED_BACKBONE.PYRAMID", guided_backbone.PYRAMIDS),
        ("MODEL.SPATIAL_TRANSFORMER.TRANSFORM", spatial_transformer_backbone.INVERTIBLE),
        ("MODEL.SPN.GATE_MODE", propagation.GATE_MODES),
        ("MODEL.BOUNDARY.CONSENSUS", boundary_loss.CONSENSUS),
        ("MODEL.BOUNDARY.STRIDE", boundary_head.STRIDES),
        ("MODEL.VGG.NORM", vgg16._NORMS),
        ("MODEL.VGG.OUT_FEATURES", vgg16.vgg16_features(4096)),
        ("SOLVER.OPTIMIZER", solver.OPTIMIZERS),
        ("SOLVER.AMP.PRECISION", train_step.PRECISIONS),
    ],
)
def test_choices_are_those_of_the_component(name, choices):
    assert set(KEYS[name].choices) == set(choices)


def test_all_norms_can_be_built():
    for norm in NORMS:
        assert (get_norm(norm, 32) is None) == (norm == "")
    for name, key in KEYS.items():
        assert not name.endswith(".NORM") or set(key.choices) <= set(NORMS)


@pytest.mark.parametrize(
    "name, value, allowed",
    [
        ("MODEL.RPE.CONV_DIM", 0, "1 to 65536 channels"),
        ("MODEL.RPE.CONV_DIM", 2.5, "1 to 65536 channels"),
        ("MODEL.RPE.CONV_DIM", True, "1 to 65536 channels"),
        ("MODEL.RPE.MARGIN", 1.5, "0 to 1"),
        ("MODEL.RPE.MARGIN", math.nan, "0 to 1"),
        ("MODEL.RPE.MARGIN", None, "0 to 1"),
        ("MODEL.RPE.MARGIN", "0.5", "0 to 1"),
        ("MODEL.RPE.MASK_THRESHOLD", 0.0, "above 0, up to 0.99"),
        ("MODEL.RPE.VOTE_UNIT", 0.0, "above 0 pixels"),
        ("MODEL.RPE.NEGATIVE_RADIUS", math.nan, "0 or more pixels"),
        ("MODEL.RPE.VOTES", 1, "True or False"),
        ("MODEL.RPE.STRIDE", 3, "1, 2, 4, 8 pixels"),
        ("MODEL.RPE.GROUPING", "kmean", "mean_shift, components, kmeans"),
        ("MODEL.RPE.REFINE", "crf", "'', 'spn'"),
        ("MODEL.SPN.CONNECTIONS", 2, "1 or 3"),
        ("MODEL.VGG.DROPOUT", 1.0, "0 to below 1"),
        ("MODEL.VGG.OUT_FEATURES", ["pool3", "pool6"], "one or more of conv1_1, conv1_2"),
        ("MODEL.RPE.IN_FEATURES", "p2", "a list of outputs of the backbone"),
        ("MODEL.RPE.IN_FEATURES", ["p2", 3], "a list of outputs of the backbone"),
        ("MODEL.DEEPMASK.IN_FEATURES", [], "one or more maps of the backbone"),
        ("MODEL.MEAN_SHIFT.TEST_SCALES", [], "one or more factors above 0"),
        ("MODEL.MEAN_SHIFT.TEST_SCALES", [1.0, 0.0], "one or more factors above 0"),
        ("MODEL.MEAN_SHIFT.TEST_SCALES", [1.0, math.nan], "one or more factors above 0"),
        ("DATASETS.HELEN", 3, "a folder"),
        ("DATASETS.COCO_JSONS", "a=b", "a list of entries name=path.json:image_root"),
        ("SOLVER.ACCUMULATE_STEPS", 0, "1 or more"),
        ("SOLVER.EMA.DECAY", 1.0, "above 0 and below 1"),
        ("SOLVER.AMP.PRECISION", "float8", "float16, bfloat16"),
        ("DETERMINISTIC", "yes", "True or False"),
    ],
)
def test_a_wrong_value_is_one_line(name, value, allowed):
    cfg = new_cfg()
    set_key(cfg, name, value)
    with pytest.raises(ValueError) as error:
        check_config(cfg)
    assert str(error.value).startswith(f"{name} is {value!r}; allowed: {allowed}")
    assert "\n" not in str(error.value)


def test_integers_and_tuples_are_allowed_for_floats_and_lists():
    cfg = new_cfg()
    cfg.MODEL.RPE.MARGIN = 0
    cfg.MODEL.MEAN_SHIFT.BANDWIDTH_MODE = "fixed"
    cfg.MODEL.MEAN_SHIFT.TEST_SCALES = (1, 2.0)
    assert check_config(cfg) is None
    cfg.MODEL.RPE.MARGIN = "0"
    with pytest.raises(ValueError, match="MODEL.RPE.MARGIN is '0'"):
        check_config(cfg)


def test_only_the_given_nodes_are_checked():
    cfg = new_cfg()
    cfg.MODEL.RPE.PROPOSALS.MAX_KEYS = 0
    check_config(cfg, "MODEL.MEAN_SHIFT", "MODEL.RP")
    with pytest.raises(ValueError, match="MODEL.RPE.PROPOSALS.MAX_KEYS is 0"):
        check_config(cfg, "MODEL.MEAN_SHIFT", "MODEL.RPE")


@pytest.mark.parametrize(
    "text, message",
    [
        ("MODEL: {RPE: {MARGIN: 1.0}}", "MODEL.RPE.MARGIN is 1, which leaves no bandwidth"),
        (
            "MODEL: {RPE: {VOTES: False}, MEAN_SHIFT: {RELATIVE_BANDWIDTH: 0.1}}",
            "MODEL.MEAN_SHIFT.RELATIVE_BANDWIDTH is 0.1, which needs MODEL.RPE.VOTES True",
        ),
        (
            "MODEL: {MEAN_SHIFT: {RELATIVE_BANDWIDTH: 0.1, SPATIAL_BANDWIDTH: 0.0}}",
            "MODEL.MEAN_SHIFT.RELATIVE_BANDWIDTH is 0.1, which needs MODEL.RPE.VOTES True",
        ),
    ],
)
def test_keys_that_exclude_each_other_are_one_line(text, message):
    cfg = new_cfg()
    cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(text)))
    with pytest.raises(ValueError, match=message):
        check_config(cfg, "MODEL.MEAN_SHIFT")


@pytest.mark.parametrize(
    "key, value, allowed",
    [
        ("MODEL.RPE.GROUPING", "[]", "mean_shift, components, kmeans"),
        ("MODEL.RPE.VOTES", "3", "True or False"),
        ("MODEL.RPE.MARGIN", "1" + 400 * "0", "0 to 1"),
        ("SOLVER.MAX_ITER", "many", "an integer"),
        ("SOLVER.BASE_LR", "fast", "a number"),
        ("DATASETS.TRAIN", "mine", "a list"),
    ],
)
def test_a_value_of_a_wrong_type_is_answered_with_what_is_allowed(key, value, allowed, tmp_path):
    message = f"^{re.escape(key)} is {re.escape(value)}; allowed: {allowed}$"
    with pytest.raises(ValueError, match=message):
        new_cfg().merge_from_list([key, value])
    (tmp_path / "config.yaml").write_text(as_yaml({key: yaml.safe_load(value)}))
    with pytest.raises(ValueError, match=message):
        new_cfg().merge_from_file(str(tmp_path / "config.yaml"))


def test_integers_are_floats_where_a_float_is_expected(tmp_path):
    cfg = new_cfg()
    cfg.merge_from_list(["MODEL.RPE.MARGIN", "1", "SOLVER.BASE_LR", "2"])
    (tmp_path / "config.yaml").write_text("MODEL: {MEAN_SHIFT: {BANDWIDTH: 1}}")
    cfg.merge_from_file(str(tmp_path / "config.yaml"))
    values = cfg.MODEL.RPE.MARGIN, cfg.SOLVER.BASE_LR, cfg.MODEL.MEAN_SHIFT.BANDWIDTH
    assert values == (1, 2, 1) and all(type(value) is float for value in values)


@pytest.mark.parametrize("node", ["MODEL.RPE", "MODEL.SPN", "MODEL.BOUNDARY"])
def test_channels_that_do_not_form_the_groups_of_gn_are_refused(node):
    cfg = new_cfg()
    cfg.merge_from_list([f"{node}.CONV_DIM", 40])
    message = f"{node}.CONV_DIM is 40; allowed with {node}.NORM GN: multiples of 32"
    with pytest.raises(ValueError, match=message):
        check_config(cfg)
    cfg.merge_from_list([f"{node}.NORM", "BN"])
    check_config(cfg)
