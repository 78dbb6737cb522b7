"""Region proposals in COCO's results format with all kinds of masks."""

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest

from rpe_d2.utils.json_regions import JsonRegions

SIZE = (6, 8)
MASK = np.zeros(SIZE, np.uint8)
MASK[1:4, 2:6] = 1
SQUARE = [2, 1, 6, 1, 6, 4, 2, 4]


def regions_of(tmp_path, *results) -> JsonRegions:
    path = tmp_path / "regions.json"
    path.write_text(json.dumps(results))
    return JsonRegions(str(path))


def test_all_kinds_of_masks_become_compressed_rle(tmp_path):
    rle = mask_util.encode(np.asfortranarray(MASK))
    compressed = {"size": list(SIZE), "counts": rle["counts"].decode()}
    runs = np.diff(np.flatnonzero(np.diff(MASK.T.ravel(), prepend=0, append=0)), prepend=0)
    counts = [*runs.tolist(), MASK.size - int(runs.sum())]
    kinds = [compressed, {"size": list(SIZE), "counts": counts}, [SQUARE], [SQUARE, [1, 1]]]
    results = [{"image_id": 7, "segmentation": kind} for kind in kinds]
    found = regions_of(tmp_path, *results).of_image("7", SIZE, 10)
    assert [region.score for region in found] == [0, -1, -2, -3]
    for region in found:
        assert isinstance(region.rle["counts"], str) and region.rle["size"] == list(SIZE)
        np.testing.assert_array_equal(mask_util.decode(region.rle), MASK)
    empty = regions_of(tmp_path, {"image_id": 7, "segmentation": [[1, 1]]}).of_image(7, SIZE, 1)
    assert mask_util.area(empty[0].rle) == 0


def test_the_best_regions_come_first(tmp_path):
    scores = [0.1, 3, -1, 3]
    results = [
        {"image_id": i % 2, "segmentation": [SQUARE], "score": s} for i, s in enumerate(scores)
    ]
    regions = regions_of(tmp_path, *results)
    assert [region.score for region in regions.of_image(1, SIZE, 5)] == [3, 3]
    assert [region.score for region in regions.of_image(0, SIZE, 1)] == [0.1]
    assert regions.of_image(2, SIZE, 5) == []


@pytest.mark.parametrize(
    "content, message",
    [
        ("{}", "is not a list"),
        ("[1]", "entry 0 has no image_id or no segmentation"),
        ('[{"image_id": 1, "segmentation": [], "score": "a"}]', "entry 0 has the score 'a'"),
        ('[{"image_id": 1, "segmentation": [[1, 2, 3, 4, 900, 6]]}]', "the coordinate 900 in an"),
        ('[{"image_id": 1, "segmentation": {"size": [6, 8], "counts": [5]}}]', "that sum to 5"),
        ('[{"image_id": 1, "segmentation": {"size": [8, 6], "counts": [48]}}]', "of size"),
    ],
)
def test_a_wrong_file_is_reported_in_one_line(tmp_path, content, message):
    path = tmp_path / "regions.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        JsonRegions(str(path)).of_image(1, SIZE, 5)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
