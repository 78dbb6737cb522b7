"""Configurations that earlier versions saved, copies, and keys of other projects."""

import copy
import pickle

import pytest
import yaml
from detectron2.config import CfgNode
from detectron2.config import get_cfg as get_detectron2_cfg

from rpe_d2.config import add_rpe_config
from rpe_d2.config.saved import REMOVED_KEYS
from rpe_d2.engine.setup import read_config
from tests.helpers.keys import as_yaml, flat, new_cfg


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
