"""Configurations: reading, checks and one-line errors."""

import logging
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from rpe_d2 import add_rpe_config
from rpe_d2.cli.train_net import main
from rpe_d2.data import most_instances
from rpe_d2.engine import build_lr_scheduler, build_optimizer
from rpe_d2.engine.host_models import check_training_data
from rpe_d2.engine.setup import (
    check_solver,
    load_config,
    locked_output_dir,
    read_config,
    reject_swallowed_flags,
)
from rpe_d2.ops.sphere import min_margin
from rpe_d2.utils.errors import USER_ERRORS, one_line, one_line_errors
from tests.conftest import ROOT
from tests.helpers.models import small_cfg
from tests.helpers.runs import CONFIG, overrides


def shapes_cfg(*opts):
    cfg = get_cfg()
    add_rpe_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "PixelEmbeddingNet"
    cfg.DATASETS.TRAIN = ("shapes_train",)
    cfg.merge_from_list(list(opts))
    return cfg


@pytest.mark.parametrize(
    "key, value, allowed",
    [
        ("MIN_SIZE_TRAIN", (64, 0), "1 or more"),
        ("MIN_SIZE_TRAIN", (), "1 or more"),
        ("MAX_SIZE_TRAIN", 0, "1 or more"),
        ("MIN_SIZE_TEST", -1, "0 or more"),
        ("MAX_SIZE_TEST", -1, "1 or more"),
    ],
)
def test_impossible_sizes_are_refused_whatever_reads_the_configuration(key, value, allowed):
    with pytest.raises(ValueError, match=rf"INPUT.{key} is .*; allowed: {allowed} pixels"):
        read_config(CONFIG, [f"INPUT.{key}", str(value)])


def test_most_instances_counts_those_of_the_image_with_most():
    assert most_instances("shapes_train") == 12


@pytest.mark.parametrize("dim", [2, 8, 16, 32])
@pytest.mark.parametrize("margin", [0.1, 0.45, 0.5])
def test_infeasible_margins_are_reported_and_the_advice_fits(dim, margin, caplog):
    cfg = shapes_cfg("MODEL.RPE.MARGIN", margin, "MODEL.RPE.EMBEDDING_DIM", dim)
    with caplog.at_level(logging.WARNING, logger="rpe_d2"):
        check_training_data(cfg)
    feasible = min_margin(12, dim)[0] <= margin
    assert bool(caplog.records) != feasible
    if caplog.records:
        *_, advised_dim, advised_margin = caplog.records[0].args
        value, exact = min_margin(12, advised_dim)
        assert exact and value <= advised_margin


def test_a_radius_makes_every_margin_feasible_but_needs_something_to_tell_instances_apart(caplog):
    options = overrides("MODEL: {RPE: {MARGIN: 0.1, NEGATIVE_RADIUS: 20.0}}")
    check_training_data(shapes_cfg(*options))
    assert not caplog.records
    check_training_data(shapes_cfg(*options, "MODEL.RPE.VOTES", False))
    assert "SPLIT_COMPONENTS" in caplog.text


def test_swallowed_flags_are_rejected():
    with pytest.raises(ValueError, match="--num-gpus stands after"):
        reject_swallowed_flags(["SEED", "1", "--num-gpus", "2"])


@pytest.mark.parametrize("name", ["SGD", "ADAMW"])
def test_optimizer_clips_gradients_and_spares_the_bandwidth(name):
    options = overrides(
        """
        MODEL: {MEAN_SHIFT: {BANDWIDTH_MODE: learned}}
        SOLVER:
          CLIP_GRADIENTS: {ENABLED: True, CLIP_TYPE: norm, CLIP_VALUE: 0.5}
          WEIGHT_DECAY: 0.1
        """
    )
    cfg = small_cfg(*options, "SOLVER.OPTIMIZER", name)
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    decay = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    assert decay[id(model.mean_shift.log_bandwidth)] == 0
    weight = model.embedding_head.embedding[1].weight
    assert decay[id(weight)] == 0.1
    weight.grad = torch.full_like(weight, 10.0)
    optimizer.step()
    assert weight.grad.norm() == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("multiplier", [0.1, 0.0])
def test_the_backbone_has_its_own_rate(multiplier):
    cfg = small_cfg("SOLVER.BACKBONE_MULTIPLIER", str(multiplier), "SOLVER.BIAS_LR_FACTOR", "2.0")
    cfg.SOLVER.BASE_LR = 0.01
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    names = dict(model.named_parameters())
    assert any(name.startswith("backbone.") and name.endswith(".bias") for name in names)
    for name, parameter in names.items():
        rate = 0.01 * (2 if name.endswith(".bias") else 1)
        if name.startswith("backbone."):
            rate *= multiplier
            assert parameter.requires_grad == (multiplier > 0)
        if parameter.requires_grad:
            assert rates[id(parameter)] == pytest.approx(rate), name


def test_models_name_modules_that_are_backbones():
    cfg = small_cfg()
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.0
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Module())
    model[1].encoder, model[1].backbone_names = torch.nn.Linear(2, 2), ("encoder",)
    (group,) = build_optimizer(cfg, model).param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in model[0].parameters()]


def test_the_polynomial_schedule_is_that_of_the_release():
    cfg = small_cfg()
    cfg.merge_from_list(
        overrides(
            """
            SOLVER:
              {LR_SCHEDULER_NAME: WarmupPolyLR, POLY_LR_POWER: 0.9, BASE_LR: 0.01, MAX_ITER: 100,
               WARMUP_ITERS: 0}
            """
        )
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    scheduler = build_lr_scheduler(cfg, optimizer)
    for iteration in range(100):
        expected = 0.01 * (1 - iteration / 100) ** 0.9
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "{file} is empty; allowed: keys of a configuration"),
        ("- MODEL", "{file} holds the list ['MODEL']; allowed: keys of a configuration"),
        ("MODEL", "{file} holds the str 'MODEL'; allowed: keys of a configuration"),
        ("MODEL:", "{file}: MODEL is None; allowed: its keys, MODEL."),
        ("MODEL: 3", "{file}: MODEL is 3; allowed: its keys, MODEL."),
        ("MODEL: {RPE: [1]}", "{file}: MODEL.RPE is [1]; allowed: its keys, MODEL.RPE."),
        ("MODEL: {3: 4}", "{file}: the key MODEL.3 is not text"),
        ("_BASE_: 3", "{file}: _BASE_ is 3; allowed: a file"),
        ("_BASE_: [base.yaml, 3]", "{file}: _BASE_ is ['base.yaml', 3]; allowed: a file"),
        ("_BASE_: wrong.yaml", "wrong.yaml: SOLVER is None; allowed: its keys, SOLVER."),
        ("_BASE_: absent.yaml", "absent.yaml"),
        ("_BASE_: config.yaml", "{file}: _BASE_ leads from a file back to itself"),
        (b"\x89PNG\r\n\xff", "{file} is not a text file"),
        (
            "MODEL: {DEVICE: foo}",
            "MODEL.DEVICE is foo; this machine has 2 GPUs, allowed: cpu, cuda",
        ),
        ("MODEL: {DEVICE: 'cuda:2'}", "MODEL.DEVICE is cuda:2; this machine has 2 GPUs"),
    ],
)
def test_a_wrong_configuration_file_is_one_line(content, message, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    file = tmp_path / "config.yaml"
    (tmp_path / "base.yaml").write_text("SOLVER: {MAX_ITER: 1}")
    (tmp_path / "wrong.yaml").write_text("SOLVER:")
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(USER_ERRORS) as error:
        load_config(str(file), [])
    assert message.format(file=file) in one_line(error.value)


@pytest.mark.parametrize("base", ["base.yaml", "[base.yaml, other.yaml]"])
def test_files_are_merged_with_their_bases(base, tmp_path: Path):
    (tmp_path / "base.yaml").write_text("SOLVER: {MAX_ITER: 1, STEPS: [3]}")
    (tmp_path / "other.yaml").write_text("SEED: 4")
    (tmp_path / "config.yaml").write_text(f"_BASE_: {base}\nSOLVER: {{MAX_ITER: 2}}")
    cfg = read_config(str(tmp_path / "config.yaml"), ["SOLVER.BASE_LR", "0.5"])
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.BASE_LR) == (2, (3,), 0.5)


@pytest.mark.parametrize(
    "opts, message",
    [
        (["MODEL", "None"], "MODEL is None; allowed: values of its keys, MODEL."),
        (["MODEL.RPE", "3"], "MODEL.RPE is 3; allowed: values of its keys, MODEL.RPE."),
        (["SOLVER.BASE_LR.X", "3"], "Non-existent config key: SOLVER.BASE_LR.X"),
        (["SOLVER.ABSENT", "3"], "Non-existent config key: SOLVER.ABSENT"),
    ],
)
def test_wrong_overrides_are_one_line(opts, message, tmp_path: Path):
    (tmp_path / "config.yaml").write_text("SOLVER: {MAX_ITER: 1}")
    with pytest.raises(USER_ERRORS) as error:
        read_config(str(tmp_path / "config.yaml"), opts)
    assert message in one_line(error.value)


@pytest.mark.parametrize(
    "options, words",
    [
        (["MODEL.FPN.FUSE_TYPE", "x"], ["AssertionError", "fpn.py", "fuse_type"]),
        (["MODEL.RESNETS.DEPTH", "17"], ["KeyError: 17", "resnet.py", "num_blocks_per_stage"]),
        (["MODEL.FPN.IN_FEATURES", "['p9']"], ["KeyError: p9", "fpn.py", "input_shapes"]),
    ],
)
def test_an_error_without_a_message_comes_with_its_source_line(options, words, capsys):
    cfg = small_cfg("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone")
    cfg.merge_from_list(options)
    with pytest.raises(SystemExit), one_line_errors():
        build_model(cfg)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and all(word in line for word in words), line


@pytest.mark.parametrize("key, value", [
    ("SOLVER.MAX_ITER", 0), ("SOLVER.MAX_ITER", -5), ("TEST.DETECTIONS_PER_IMAGE", -1)
])  # fmt: skip
def test_counts_below_one_are_refused(key, value, tmp_path, capfd):
    opts = ["OUTPUT_DIR", str(tmp_path), key, str(value)]
    with pytest.raises(SystemExit):
        main(["--config-file", str(ROOT / "configs/quick/rpe_instant_test.yaml"), *opts])
    assert f"{key} is {value}; allowed: 1 or more" in capfd.readouterr().err


def test_files_of_data_that_are_none_are_one_line(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("DATASETS: {SEM_SEG_DIRS: null}")
    with pytest.raises(ValueError, match="^DATASETS.SEM_SEG_DIRS is None; allowed: a list of "):
        load_config(str(tmp_path / "config.yaml"), [])


@pytest.mark.parametrize("metric", ["AP", "segm", "mask/AP", "segm/", "/", "total_loss"])
def test_a_metric_that_no_evaluator_has_is_refused(metric):
    with pytest.raises(ValueError, match="^TEST.BEST_METRIC is .*; allowed: TASK/SCORE such as"):
        check_solver(small_cfg("TEST.BEST_METRIC", metric))


@pytest.mark.parametrize(
    "metric",
    [
        "segm/AP",
        "my_val/bbox/AP50",
        "validation/total_loss",
        "voc_segm/AP50",
        "boundary/ODS",
        "labels/S",
    ],
)
def test_metrics_of_evaluators_are_accepted(metric):
    cfg = small_cfg("TEST.BEST_METRIC", metric)
    check_solver(cfg)  # it raises for others
    assert cfg.TEST.BEST_METRIC == metric


def test_an_empty_output_dir_is_named():
    with pytest.raises(ValueError, match="OUTPUT_DIR is empty; allowed: the path of a folder"):
        with locked_output_dir(""):
            pass
