"""The keys as data, their checks, and what configurations accept that earlier versions saved."""

import copy
import math
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from detectron2.config import CfgNode
from detectron2.config import get_cfg as get_detectron2_cfg
from detectron2.layers import get_norm

import rpe_d2
from rpe_d2.baselines import vgg16
from rpe_d2.config import (
    add_rpe_config,
    all_keys,
    check_config,
    check_registered_names,
    config_files,
)
from rpe_d2.config.key import NORMS
from rpe_d2.config.nearest import nearest
from rpe_d2.config.saved import REMOVED_KEYS
from rpe_d2.engine import solver, train_step
from rpe_d2.engine.setup import read_config
from rpe_d2.modeling import boundary_head, boundary_loss
from rpe_d2.modeling.backbone import guided_backbone
from rpe_d2.modeling.embedding import grouping, head, mean_shift_layer
from rpe_d2.modeling.meta_arch import pixel_embedding_net
from rpe_d2.ops import pair_loss, propagation
from rpe_d2.utils.errors import one_line

ROOT = Path(__file__).resolve().parents[1]
KEYS = {
    f"{node}.{name}".lstrip("."): key
    for node, keys in all_keys().items()
    for name, key in keys.items()
}


def new_cfg() -> CfgNode:
    cfg = get_detectron2_cfg()
    add_rpe_config(cfg)
    return cfg


def set_key(cfg, name, value):
    *nodes, last = name.split(".")
    for node in nodes:
        cfg = cfg[node]
    cfg[last] = value


def flat(node, prefix=""):
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def as_yaml(values) -> str:
    """Nested YAML text of values by full name."""
    tree = {}
    for name, value in values.items():
        *nodes, last = name.split(".")
        node = tree
        for part in nodes:
            node = node.setdefault(part, {})
        node[last] = value
    return yaml.safe_dump(tree)


def test_there_are_at_most_190_keys():
    assert len(KEYS) <= 190


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
        ("MODEL.RPE.GROUPING", grouping.GROUPINGS),
        ("MODEL.RPE.REFINE", pixel_embedding_net.REFINEMENTS),
        ("MODEL.MEAN_SHIFT.BANDWIDTH_MODE", mean_shift_layer.BANDWIDTH_MODES),
        ("MODEL.GUIDED_BACKBONE.PYRAMID", guided_backbone.PYRAMIDS),
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
        ("MODEL.RPE.CONV_DIM", 0, "1 or more channels"),
        ("MODEL.RPE.CONV_DIM", 2.5, "1 or more channels"),
        ("MODEL.RPE.CONV_DIM", True, "1 or more channels"),
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


# ---- Saved configurations


@pytest.fixture(params=["a plain script", "read_config"])
def load(request):
    """Loads a file in a plain Detectron2 script, or as the command line does."""

    def plain(path) -> CfgNode:
        cfg = new_cfg()
        cfg.merge_from_file(str(path))
        return cfg

    return plain if request.param == "a plain script" else lambda path: read_config(str(path), [])


def test_a_saved_configuration_with_removed_keys_loads(load, tmp_path):
    saved = {**dict(flat(new_cfg())), **REMOVED_KEYS, "SEED": 5}
    (tmp_path / "saved.yaml").write_text(as_yaml(saved))
    cfg = load(tmp_path / "saved.yaml")
    expected = new_cfg()
    expected.SEED = 5
    assert yaml.safe_load(cfg.dump()) == yaml.safe_load(expected.dump())


@pytest.mark.parametrize(
    "text",
    [
        "MODEL: {DEEPMASK: {POSITIVE_SHIFT: 0.0714286, SCORE_LOSS_WEIGHT: 0.03125}}",
        "MODEL: {SPN: {COARSE_FACTORS: !!python/tuple [4, 2, 8]}}",
        'MODEL: {SPN: {COARSE_FACTORS: "(4, 2, 8)"}, MNC: {MASK_SIZE: "28"}}',
        "MODEL: {FCIS: {MASK_LOSS_WEIGHT: 10}}",
    ],
)
def test_a_default_may_be_written_in_another_way(text, tmp_path):
    (tmp_path / "saved.yaml").write_text(text)
    cfg = new_cfg()
    cfg.merge_from_file(str(tmp_path / "saved.yaml"))
    assert cfg == new_cfg()


@pytest.mark.parametrize(
    "name, value",
    [
        *((name, 5.5) for name in REMOVED_KEYS),
        ("MODEL.SPN.COARSE_FACTORS", [4, 2]),
        ("MODEL.SPN.COARSE_FACTORS", [4, 2, 9]),
        ("MODEL.RPE.PROPOSALS.NMS_TYPE", "box"),
        ("MODEL.INSTANCE_FCN.MASK_LOSS_WEIGHT", True),
    ],
)
def test_another_value_of_a_removed_key_is_refused_in_one_line(name, value, load, tmp_path):
    (tmp_path / "saved.yaml").write_text(as_yaml({name: value}))
    with pytest.raises(ValueError) as error:
        load(tmp_path / "saved.yaml")
    start = (
        f"{name} is {value!r}; allowed: {REMOVED_KEYS[name]!r}, the default. It is no longer a key"
    )
    assert str(error.value).startswith(start) and "\n" not in str(error.value)


def test_removed_keys_of_a_base_are_merged_before_they_are_judged(load, tmp_path):
    (tmp_path / "base.yaml").write_text("MODEL: {MNC: {MASK_SIZE: 14, FC_DIM: 64}}")
    (tmp_path / "saved.yaml").write_text("_BASE_: base.yaml\nMODEL: {MNC: {MASK_SIZE: 28}}")
    assert load(tmp_path / "saved.yaml").MODEL.MNC.FC_DIM == 64
    (tmp_path / "saved.yaml").write_text("_BASE_: base.yaml")
    with pytest.raises(ValueError, match="MODEL.MNC.MASK_SIZE is 14; allowed: 28"):
        load(tmp_path / "saved.yaml")


def test_removed_keys_on_the_command_line(tmp_path):
    (tmp_path / "config.yaml").write_text("SEED: 5")

    def read(*opts):
        return read_config(str(tmp_path / "config.yaml"), list(opts))

    cfg = read("MODEL.MNC.MASK_SIZE", "28", "MODEL.SPN.COARSE_FACTORS", "(4,2,8)", "SEED", "6")
    assert cfg.SEED == 6 and "MASK_SIZE" not in cfg.MODEL.MNC
    assert read("MODEL.SDS.MASK_SIZE", "28").SEED == 5
    with pytest.raises(ValueError, match="MODEL.SDS.MASK_SIZE is 14; allowed: 28"):
        read("MODEL.SDS.MASK_SIZE", "14")


@pytest.mark.parametrize(
    "copied",
    [
        lambda cfg: cfg.clone(),
        copy.deepcopy,
        lambda cfg: pickle.loads(pickle.dumps(cfg)),
        lambda cfg: cfg,
    ],
    ids=["clone", "deepcopy", "pickle", "itself"],
)
def test_a_copy_accepts_saved_configurations_too(copied, tmp_path):
    (tmp_path / "old.yaml").write_text(as_yaml(REMOVED_KEYS))
    (tmp_path / "other.yaml").write_text("MODEL: {MNC: {MASK_SIZE: 14}}")
    cfg = copied(new_cfg())
    cfg.freeze()
    assert copied(cfg).is_frozen()
    cfg.defrost()
    cfg.merge_from_file(str(tmp_path / "old.yaml"))
    assert cfg == new_cfg() and cfg.dump() == new_cfg().dump()
    with pytest.raises(ValueError, match="MODEL.MNC.MASK_SIZE is 14"):
        cfg.merge_from_file(str(tmp_path / "other.yaml"))


def test_a_dumped_configuration_loads(load, tmp_path):
    cfg = new_cfg()
    cfg.MODEL.RPE.MARGIN = 0.25
    (tmp_path / "saved.yaml").write_text(cfg.dump())
    loaded = load(tmp_path / "saved.yaml")
    assert yaml.safe_load(loaded.dump()) == yaml.safe_load(cfg.dump())


def test_merging_leaves_the_other_configuration_as_it_is():
    other = CfgNode({"MODEL": {"MNC": {"MASK_SIZE": 28}}})
    other.freeze()
    new_cfg().merge_from_other_cfg(other)
    assert other.MODEL.MNC.MASK_SIZE == 28


def test_other_projects_can_add_and_merge_their_keys(tmp_path):
    cfg = new_cfg()
    cfg.MODEL.MASK_FORMER = CfgNode({"HIDDEN_DIM": 256})
    cfg.OTHER = CfgNode(new_allowed=True)
    (tmp_path / "config.yaml").write_text(
        "MODEL: {MASK_FORMER: {HIDDEN_DIM: 8}}\nOTHER: {ANY: {THING: 3}}"
    )
    cfg.merge_from_file(str(tmp_path / "config.yaml"))
    assert cfg.MODEL.MASK_FORMER.HIDDEN_DIM == 8 and cfg.OTHER.ANY.THING == 3
    plain = get_detectron2_cfg()
    plain.set_new_allowed(True)
    plain.merge_from_other_cfg(cfg)
    assert plain == cfg


def test_files_of_detectron2s_first_version_are_still_converted(tmp_path):
    (tmp_path / "config.yaml").write_text("VERSION: 1\nMODEL: {WEIGHT: old.pkl}")
    cfg = new_cfg()
    cfg.merge_from_file(str(tmp_path / "config.yaml"))
    assert cfg.MODEL.WEIGHTS == "old.pkl" and cfg.MODEL.RPE.MARGIN == 0.5


def test_a_frozen_configuration_gains_no_keys():
    cfg = get_detectron2_cfg()
    cfg.freeze()
    with pytest.raises(AttributeError, match="immutable"):
        add_rpe_config(cfg)


# ---- Unknown names


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


# ---- Configuration files by name


def test_every_file_is_found_by_its_name():
    names = config_files.config_names()
    assert len(names) > 40 and "nuclei/rpe_R_18.yaml" in names
    for name in names:
        assert Path(rpe_d2.get_config_file(name)) == ROOT / "configs" / name


def test_get_cfg_merges_the_file():
    expected = new_cfg()
    expected.merge_from_file(str(ROOT / "configs" / "rpe_coco.yaml"))
    assert rpe_d2.get_cfg("rpe_coco.yaml") == expected
    assert expected.MODEL.META_ARCHITECTURE == "PixelEmbeddingNet"


@pytest.mark.parametrize("name", ["rpe_coc.yaml", "", "../setup.py", "nuclei", "rpe_coco"])
def test_an_unknown_file_is_one_line_with_the_nearest_names(name):
    with pytest.raises(ValueError) as error:
        rpe_d2.get_cfg(name)
    start = f"There is no configuration file {name!r}; the nearest names: "
    assert str(error.value).startswith(start) and ".yaml" in str(error.value)
    assert "rpe_coco.yaml" in str(error.value) or not name.startswith("rpe")


def test_files_of_the_installed_package_come_first(tmp_path, monkeypatch):
    installed = tmp_path / "rpe_d2" / "configs"
    monkeypatch.setattr(config_files, "_FOLDERS", (installed, ROOT / "configs"))
    assert rpe_d2.get_config_file("rpe_coco.yaml") == str(ROOT / "configs" / "rpe_coco.yaml")
    installed.mkdir(parents=True)
    (installed / "rpe_coco.yaml").write_text("SEED: 5")
    assert rpe_d2.get_config_file("rpe_coco.yaml") == str(installed / "rpe_coco.yaml")
    assert rpe_d2.get_cfg("rpe_coco.yaml").SEED == 5
    monkeypatch.setattr(config_files, "_FOLDERS", (tmp_path,))
    with pytest.raises(ValueError, match="has no configuration files"):
        rpe_d2.get_config_file("rpe_coco.yaml")


def test_a_bare_name_is_read_in_any_folder_and_a_file_there_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = read_config("rpe_coco.yaml", ["SEED", "5"])
    assert cfg.MODEL.META_ARCHITECTURE == "PixelEmbeddingNet" and cfg.SEED == 5
    Path("rpe_coco.yaml").write_text("SEED: 6")
    assert read_config("rpe_coco.yaml", []).SEED == 6
    with pytest.raises(ValueError, match="There is no configuration file 'mine.yaml'"):
        read_config("mine.yaml", [])


def test_the_package_is_imported_without_what_only_tools_need():
    code = "import sys, rpe_d2; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=ROOT
    ).stdout.split()
    assert "rpe_d2.config" in loaded
    assert not {"rpe_d2.engine", "rpe_d2.cli", "rpe_d2.visualization"} & set(loaded)
