"""Registered names, keys and configuration files against a record made before the package moved."""

import json

import pytest

from rpe_d2.config.saved import REMOVED_KEYS
from tests.golden.make_configs_golden import GOLDEN, describe

# Files that differed from another one by an override, and are that override now.
REMOVED_FILES = {
    "baselines/mnc_three_stages_nuclei.yaml",
    "baselines/mnc_three_stages_shapes.yaml",
    "boundary/bsds_R_18_cross_entropy.yaml",
    "boundary/bsds_R_18_pair_loss.yaml",
    "semantic/fcn_16s_shapes.yaml",
    "semantic/fcn_32s_shapes.yaml",
}
# Settings that a file no longer inherits, or inherits now, of components that it does not build.
CHANGED_SETTINGS = {
    "baselines/deepmask_nuclei.yaml": "MODEL.RPE.PROPOSALS.",
    "baselines/sharpmask_nuclei.yaml": "MODEL.RPE.PROPOSALS.",
    "semantic/deconvnet_voc.yaml": "MODEL.RESNETS.",
    "semantic/fcn_8s_voc.yaml": "MODEL.RESNETS.",
}
# Files that were changed on purpose since.
CHANGED_FILES = {
    "quickstart/rpe_shapes.yaml",
    "quick/rpe_instant_test.yaml",
    "nuclei/rpe_R_18.yaml",
    "nuclei/mask_rcnn_R_18.yaml",
    "nuclei/semantic_control.yaml",
    # These inherit the ones above.
    *(f"baselines/{name}_nuclei.yaml" for name in ("deepmask", "fcis", "hypercolumn", "mnc")),
    *(f"baselines/{name}_nuclei.yaml" for name in ("instance_fcn", "sds", "sharpmask")),
    "proposals/rpe_nuclei.yaml",
    "proposals/rpn_nuclei.yaml",
    "semantic/embedding_nuclei.yaml",
    "spn/mask_rcnn_spn_nuclei.yaml",
}
# Keys that rpe_coco.yaml has set since, and files that inherit it.
CHANGED_KEYS = {"MODEL.RPE.GROUP_CLASSES", "MODEL.RPE.VOTE_LOSS_WEIGHT"}


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.read_text())


@pytest.fixture(scope="module")
def today():
    return describe()


def test_registered_names_remain(golden, today):
    for registry, names in golden["registries"].items():
        assert set(names) <= set(today["registries"][registry]), registry


def test_keys_keep_their_defaults_but_for_the_listed_ones(golden, today):
    kept = {key: value for key, value in golden["keys"].items() if key not in REMOVED_KEYS}
    assert {key: today["keys"].get(key) for key in kept} == kept


def test_removed_keys_keep_the_defaults_that_they_had(golden):
    assert REMOVED_KEYS == {key: golden["keys"][key] for key in REMOVED_KEYS}
    assert len(REMOVED_KEYS) == 33


def test_files_set_the_same_values_but_for_the_listed_ones(golden, today):
    files = golden["files"].keys() - REMOVED_FILES
    assert files <= today["files"].keys()
    for file in files - CHANGED_FILES:
        before, after = (
            {
                key: value
                for key, value in record["files"][file].items()
                if file not in CHANGED_SETTINGS or not key.startswith(CHANGED_SETTINGS[file])
                if file.startswith("nuclei/") or key not in CHANGED_KEYS
            }
            for record in (golden, today)
        )
        assert after == before, file
