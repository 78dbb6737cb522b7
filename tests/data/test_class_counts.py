import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from rpe_d2.data import class_counts, count_class_pixels


@pytest.fixture
def two_data_sets(tmp_path):
    rng = np.random.default_rng(0)
    maps = {name: rng.choice([0, 1, 1, 3, 255], (5, 6, 7)) for name in ("counted_a", "counted_b")}
    for name, labels in maps.items():
        records = []
        for number, one in enumerate(labels):
            path = tmp_path / f"{name}_{number}.png"
            Image.fromarray(one.astype(np.uint8)).save(path)
            records.append({"file_name": "", "sem_seg_file_name": str(path)})
        DatasetCatalog.register(name, lambda records=records: records)
    yield maps, tmp_path
    for name in maps:
        DatasetCatalog.remove(name)


def test_pixels_of_all_data_sets_are_counted(two_data_sets):
    maps, folder = two_data_sets
    stacked = np.concatenate([*maps.values()])
    expected = [(stacked == label).sum() for label in range(4)]
    assert count_class_pixels(["counted_a", "counted_b"], 4).tolist() == expected
    (folder / "counted_a_1.png").write_bytes(b"no image")  # left out
    expected = [(np.delete(maps["counted_a"], 1, axis=0) == label).sum() for label in range(4)]
    assert count_class_pixels(["counted_a"], 4).tolist() == expected


def test_negative_labels_are_not_counted(two_data_sets):
    maps, folder = two_data_sets
    np.save(folder / "labels.npy", np.full((6, 7), -1, np.int32))
    DatasetCatalog.get("counted_a")[1]["sem_seg_file_name"] = str(folder / "labels.npy")
    expected = [(np.delete(maps["counted_a"], 1, axis=0) == label).sum() for label in range(4)]
    assert count_class_pixels(["counted_a"], 4).tolist() == expected


def test_large_data_sets_are_sampled(two_data_sets, monkeypatch):
    maps, _ = two_data_sets
    monkeypatch.setattr(class_counts, "_MOST_MAPS", 3)
    expected = [(maps["counted_a"][::2] == label).sum() for label in range(4)]
    assert count_class_pixels(["counted_a"], 4).tolist() == expected


def test_data_without_maps_are_named(two_data_sets):
    _, folder = two_data_sets
    DatasetCatalog.get("counted_a")[2].pop("sem_seg_file_name")
    with pytest.raises(ValueError, match="counted_a has no semantic label maps"):
        count_class_pixels(["counted_a"], 4)
    for path in folder.glob("counted_b*"):
        Image.fromarray(np.full((3, 3), 255, np.uint8)).save(path)
    with pytest.raises(ValueError, match="counted_b have no pixels of the 4 classes; allowed"):
        count_class_pixels(["counted_b"], 4)
