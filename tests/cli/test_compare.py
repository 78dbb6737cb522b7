"""rpe-d2 compare on tiny networks with random weights, and its page in a real browser."""

import json
import shutil
import subprocess

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from pycocotools import mask as mask_util

from rpe_d2.cli import compare
from rpe_d2.cli.compare import main
from rpe_d2.engine.setup import load_config
from rpe_d2.evaluation.error_analysis import ERROR_KINDS
from rpe_d2.utils.flops import inference_flops
from rpe_d2.visualization.report import comparison_table
from tests.conftest import ROOT
from tests.helpers.environment import chromium
from tests.helpers.runs import CONFIG, TINY, save_random

PROPOSALS = str(ROOT / "configs/proposals/rpn_shapes.yaml")
COMMON = ["--dataset", "shapes_val", "--num-images", "3", "--pictures", "2", "--oracles"]
OPTS = ["--opts", *TINY]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    other = TINY + ["MODEL.RPN.POST_NMS_TOPK_TEST", "30"]
    return (
        save_random(CONFIG, TINY, folder / "rpe.pth"),
        save_random(PROPOSALS, other, folder / "rpn.pth"),
    )


@pytest.fixture(scope="module")
def compared(weights, tmp_path_factory):
    output = tmp_path_factory.mktemp("comparison")
    models = [f"{CONFIG}={weights[0]}", f"{PROPOSALS}={weights[1]}", f"{CONFIG}=none.pth"]
    status = main([*models, *COMMON, "--output", str(output), *OPTS])
    shutil.copy(output / "index.html", output / "first.html")  # later calls replace it
    return models, output, status


def test_rows_page_and_table(compared):
    _, output, status = compared
    assert status == 1  # one of them has no weights
    content = json.loads((output / "compare.json").read_text())
    assert content["dataset"] == "shapes_val" and content["images"] == 3
    assert content["command"].startswith("tools/compare.py ")
    detector, proposals, failed = content["rows"]
    assert {"AP", "AP50", "AR", "precision50"} <= set(detector["segm"])
    assert {"AP", "APl"} <= set(detector["boundary"]) and not detector["filled_boxes"]
    model = build_model(load_config(CONFIG, TINY))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert detector["parameters_million"] == pytest.approx(parameters / 1e6)
    assert detector["gflops"] > 0.1
    assert detector["seconds_per_image"] > 0
    assert {"AP50", *ERROR_KINDS, "counts"} <= set(detector["errors"])
    oracles = {"true classes", "true scores", "true grouping", "true foreground"}
    assert set(detector["oracles"]) == oracles and "errors" not in proposals
    curve = detector["recall"]
    assert len(curve["numbers"]) == len(curve["recall_by_number"]) and len(curve["ious"]) == 10
    assert "segm" not in proposals and proposals["filled_boxes"]
    at = dict(zip(proposals["recall"]["numbers"], proposals["recall"]["recall_by_number"]))
    for limit in (1, 10, 100, 1000):
        assert at[limit] == pytest.approx(proposals["proposals"][f"AR@{limit}"], abs=1e-3)
    assert [row["name"] for row in content["rows"]] == [
        "rpe_shapes, rpe", "rpn_shapes", "rpe_shapes, none",
    ]  # fmt: skip
    assert failed["error"] == "weights none.pth: no such file"
    table = (output / "compare.md").read_text().splitlines()
    assert " AP50 " in table[0] and " AP50 " not in comparison_table([proposals])
    assert " box AR@10 " in comparison_table([proposals, failed])
    assert len(table) == 5 and "filled boxes" in table[3] and "failed: weights none.pth" in table[4]
    page = (output / "index.html").read_text()
    assert page.count("data:image/jpeg") == 2 * 3 and page.count("<svg") == 6
    # XML namespaces of the figures are the only addresses: the page loads nothing.
    for namespace in ("www.w3.org", "purl.org", "creativecommons.org", "matplotlib.org"):
        page = page.replace(f"http://{namespace}", "").replace(f"https://{namespace}", "")
    assert "http" not in page


def test_finished_rows_are_reused(compared, weights, capsys):
    models, output, _ = compared
    rows = sorted((output / "rows").iterdir())
    assert len(rows) == 2
    stamp = [row.stat().st_mtime_ns for row in rows]
    assert main([*models[:2], *COMMON, "--output", str(output), *OPTS]) == 0
    assert capsys.readouterr().err.count(": read from ") == 2
    assert [row.stat().st_mtime_ns for row in rows] == stamp
    # Other weights are another row.
    state = torch.load(weights[0], weights_only=True)
    changed = output.parent / "changed.pth"
    first = next(iter(state["model"]))
    torch.save({"model": {**state["model"], first: state["model"][first] + 1}}, changed)
    assert main([f"{CONFIG}={changed}", *COMMON, "--output", str(output), *OPTS]) == 0
    assert ": read from " not in capsys.readouterr().err
    assert len(list((output / "rows").iterdir())) == 3


def test_a_detector_of_boxes_has_them_filled(tmp_path):
    """Filled boxes count as masks, and an unreadable configuration affects only its own row."""
    (tmp_path / "boxes.yaml").write_text(
        f"_BASE_: {ROOT}/configs/proposals/mask_rcnn_rpn_shapes.yaml\nMODEL:\n  MASK_ON: False\n"
    )
    (tmp_path / "broken.yaml").write_text("MODEL: [")
    boxes, broken = str(tmp_path / "boxes.yaml"), str(tmp_path / "broken.yaml")
    weights = save_random(boxes, TINY, tmp_path / "boxes.pth")
    assert main([broken, f"{boxes}={weights}", *COMMON, "--output", str(tmp_path), *OPTS]) == 1
    failed, row = json.loads((tmp_path / "compare.json").read_text())["rows"]
    assert failed["error"].startswith("while parsing")
    assert row["filled_boxes"] and {"AP", "AR"} <= set(row["segm"]) and "AP" in row["boundary"]
    assert row["bbox"]["AP"] >= 0 and row["gflops"] > 0.1
    assert "(masks: filled boxes)" in (tmp_path / "compare.md").read_text()


def test_masks_of_boxes_are_filled():
    results = [{"image_id": 1, "category_id": 2, "score": 0.5, "bbox": [2.0, 1.0, 3.0, 2.0]}]
    (result,) = compare._with_masks(results, {"height": 5, "width": 6})
    mask = mask_util.decode(result["segmentation"])
    assert mask.shape == (5, 6) and mask[1:3, 2:5].all() and mask.sum() == 6
    assert compare._with_masks([result], {"height": 5, "width": 6}) == [result]


def test_a_model_that_cannot_be_traced_keeps_its_row(weights, tmp_path, monkeypatch, capsys):
    def fails(*arguments):
        raise TypeError("iteration over a 0-d tensor")

    monkeypatch.setattr(compare, "inference_flops", fails)
    assert main([f"{CONFIG}={weights[0]}", *COMMON, "--output", str(tmp_path), *OPTS]) == 0
    (row,) = json.loads((tmp_path / "compare.json").read_text())["rows"]
    assert row["gflops"] is None and "AP" in row["segm"]
    assert "rpe_shapes: GFLOPs could not be counted: iteration" in capsys.readouterr().err


@pytest.mark.parametrize(
    "config",
    [
        "quickstart/rpe_shapes.yaml",
        "proposals/rpe_shapes.yaml",
        "proposals/mask_rcnn_rpn_shapes.yaml",
        "spn/mask_rcnn_spn_shapes.yaml",
        "baselines/mnc_shapes.yaml",
        "baselines/fcis_shapes.yaml",
        "baselines/sds_shapes.yaml",
        "baselines/hypercolumn_shapes.yaml",
        "baselines/deepmask_shapes.yaml",
        "baselines/sharpmask_shapes.yaml",
        "baselines/instance_fcn_shapes.yaml",
    ],
)
def test_every_system_can_be_traced(config):
    cfg = load_config(str(ROOT / "configs" / config), [*TINY, "MODEL.WEIGHTS", ""])
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    assert inference_flops(model, [{"image": image, "height": 64, "width": 64}]) > 1e8


def test_errors_are_one_line(tmp_path, capsys):
    cases = [
        ([CONFIG, "--dataset", "nothing"], "--dataset nothing is not registered"),
        ([CONFIG, "--dataset", "shapes_val_sem_seg"], "has no annotated instances"),
        (["none.yaml"], "give --dataset"),
        ([CONFIG, "--num-images", "0"], "--num-images: 0; allowed: 1 or more"),
    ]
    for arguments, message in cases:
        with pytest.raises(SystemExit) as stopped:
            main([*arguments, "--output", str(tmp_path / "out")])
        error = capsys.readouterr().err.strip().split("\n")[-1]
        assert stopped.value.code == 2 and message in error, error


def test_the_page_in_a_browser(compared, tmp_path):
    """A screenshot shows the table's text, curves in the colors of the models, and the pictures."""
    shot = tmp_path / "page.png"
    subprocess.run(
        [
            chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--window-size=1500,2000", f"--user-data-dir={tmp_path / 'profile'}",
            f"--screenshot={shot}",
            (compared[1] / "first.html").as_uri(),
        ],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    picture = cv2.imread(str(shot))[:, :, ::-1].astype(int)
    assert picture.shape[:2] == (2000, 1500)

    def share(color, part):
        return (np.abs(part - color).max(axis=2) < 12).mean()

    blue, orange, red = (0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00), (0xA4, 0x26, 0x2C)
    table, curves = picture[:330], picture[330:900]
    for color in (blue, orange, red):  # two models, and the error of the third
        assert share(np.array(color), table) > 1e-4, color
    assert share(np.array(orange), curves) > 1e-4  # an RPN with random weights has some recall
    # The pictures below the curves have many colors.
    assert len(np.unique(picture[1450:].reshape(-1, 3), axis=0)) > 5000
