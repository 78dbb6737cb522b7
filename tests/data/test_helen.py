"""Helen on a miniature of the released folder: registration, label maps, F-scores, training."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from PIL import Image

from rpe_d2.data import HELEN_CLASSES, HELEN_PARTS, register_helen
from rpe_d2.evaluation import PartFScoreEvaluator
from tests.helpers.training import train

LISTS = {"exemplars.txt": ["a_1", "b_1"], "tuning.txt": ["c_1"], "testing.txt": ["d_1", "e_1"]}


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for file, names in LISTS.items():
        lines = [f"{number} , {name}\n" for number, name in enumerate(names, start=1)]
        (tmp_path / file).write_text("".join(lines))
        for name in names:
            picture = rng.integers(0, 256, (48, 40, 3), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / "images" / f"{name}.jpg")
            (tmp_path / "labels" / name).mkdir(parents=True)
            for label in range(11):
                likely = rng.integers(0, 200, (48, 40), dtype=np.uint8)
                likely[4 * label : 4 * label + 4] = 255
                file_name = f"{name}_lbl{label:02d}.png"
                Image.fromarray(likely).save(tmp_path / "labels" / name / file_name)
    yield tmp_path
    for split in ("train", "val", "test"):
        if f"helen_{split}" in DatasetCatalog.list():
            DatasetCatalog.remove(f"helen_{split}")
            MetadataCatalog.pop(f"helen_{split}")


def test_lists_images_and_label_maps(root):
    register_helen(str(root))
    register_helen(str(root))  # a second time, as a second run of a process does
    assert [len(DatasetCatalog.get(f"helen_{s}")) for s in ("train", "val", "test")] == [2, 1, 2]
    record = DatasetCatalog.get("helen_test")[1]
    assert (record["image_id"], record["height"], record["width"]) == ("e_1", 48, 40)
    labels = read_image(record["sem_seg_file_name"], "L").squeeze(-1)
    assert np.array_equal(labels[:44, 0], np.repeat(np.arange(11), 4))
    assert MetadataCatalog.get("helen_test").stuff_classes == list(HELEN_CLASSES)
    assert {c for part in HELEN_PARTS.values() for c in part} == set(range(1, 10))


def test_what_is_missing_is_named(root, tmp_path):
    register_helen("")
    assert "helen_train" not in DatasetCatalog.list()
    with pytest.raises(FileNotFoundError, match="it has no exemplars.txt"):
        register_helen(str(tmp_path / "labels"))
    (root / "images" / "d_1.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="testing.txt names d_1; there is no"):
        register_helen(str(root))
    with pytest.raises(ValueError, match="DATASETS.HELEN is elsewhere; helen_train is registered"):
        register_helen("elsewhere")


def test_f_scores_by_hand(root):
    register_helen(str(root))
    evaluator = PartFScoreEvaluator("helen_val")
    record = DatasetCatalog.get("helen_val")[0]
    truth = read_image(record["sem_seg_file_name"], "L").squeeze(-1)
    pred = truth.copy()
    pred[truth == 4] = 5  # the other eye
    pred[truth == 6] = 0  # no nose
    half = (truth == 1) & (np.arange(40) < 20)
    pred[half] = 10
    scores = torch.from_numpy(np.eye(11)[pred].transpose(2, 0, 1))
    evaluator.process([record], [{"sem_seg": scores}])
    result = evaluator.evaluate()["f_score"]
    assert result["eyes"] == result["mouth"] == result["brows"] == 100
    assert result["nose"] == 0
    count = (truth == 1).sum()
    expected = 200 * (count - half.sum()) / (2 * count - half.sum())
    assert result["face skin"] == pytest.approx(expected)
    inner = np.isin(truth, range(2, 10)).sum()
    lost = (truth == 6).sum()
    assert result["overall"] == pytest.approx(200 * (inner - lost) / (2 * inner - lost))


def test_training_and_evaluation(root, tmp_path):
    output = tmp_path / "out"
    text = f"""
DATASETS: {{HELEN: {root}}}
INPUT: {{MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64}}
MODEL:
  SPN: {{CHANNELS: 2}}
"""
    assert train(output, "spn/helen.yaml", text) == 0
    metrics = json.loads((output / "result.json").read_text())["metrics"]
    assert set(metrics["f_score"]) == set(HELEN_PARTS) and "mIoU" in metrics["sem_seg"]
    assert "sem_seg_boundary_1px" in metrics
