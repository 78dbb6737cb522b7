"""Datasets without optional fields have the same metrics as complete datasets."""

import itertools

import pytest
from detectron2.data import MetadataCatalog

from rpe_d2.evaluation import (
    BoundaryAPEvaluator,
    InstanceSegmentationEvaluator,
    MaskProposalEvaluator,
)
from rpe_d2.evaluation.ground_truth import coco_ground_truth
from tests.helpers.squares import (
    LARGE,
    MEDIUM,
    NOWHERE,
    SMALL,
    change_data,
    predictions,
    upper_part,
)

LINE = [10, 10, 30, 30]  # two corners
EVALUATORS = {
    "instances": lambda name: InstanceSegmentationEvaluator(
        name, None, 100, touching_instances=True
    ),
    "proposals": lambda name: MaskProposalEvaluator(name, distributed=False),
    "boundaries": lambda name: BoundaryAPEvaluator(name, distributed=False),
}


def corners(box):
    x0, y0, x1, y1 = box
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def ids_from_zero(content):
    for annotation in content["annotations"]:
        annotation["id"] -= 1


def no_iscrowd(content):
    for annotation in content["annotations"]:
        if not annotation["iscrowd"]:
            del annotation["iscrowd"]


def no_area(content):
    for annotation in content["annotations"]:
        del annotation["area"]


def filled_boxes(content):
    for annotation, box in zip(content["annotations"], (SMALL, LARGE, MEDIUM, LARGE)):
        x0, y0, x1, y1 = box
        annotation["bbox"] = [x0, y0, x1 - x0, y1 - y0]


def corner_boxes(content):
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["bbox"] = [x, y, x + width, y + height]


def empty_boxes(content):
    for annotation in content["annotations"]:
        annotation["bbox"] = [0, 0, 0, 0]


def boxes_outside(content):
    for annotation in content["annotations"]:
        annotation["bbox"] = [400, 300, 20, 20]


def zero_areas(content):
    for annotation in content["annotations"]:
        annotation["area"] = 0


def no_masks(content):
    filled_boxes(content)
    for annotation in content["annotations"]:
        del annotation["segmentation"]


def lines_beside_polygons(content):
    for annotation, box in zip(content["annotations"], (SMALL, LARGE, MEDIUM, LARGE)):
        annotation["segmentation"] = [LINE, corners(box)]


def lines_alone(content):
    first = content["annotations"][0]
    content["annotations"].insert(0, {**first, "id": 9, "segmentation": [LINE]})


def metrics(evaluator, name, id_of=lambda number: number):
    evaluator = EVALUATORS[evaluator](name)
    evaluator.reset()
    pred = (
        predictions([LARGE, NOWHERE, SMALL], [0.9, 0.8, 0.7]),
        predictions([upper_part(MEDIUM, 0.62), (120, 40, 200, 120)], [0.6, 0.9]),
    )
    for image_id, output in enumerate(pred, start=1):
        output["instances"].pred_classes[:] = image_id - 1
        evaluator.process([{"image_id": id_of(image_id)}], [output])
    return evaluator.evaluate()


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize(
    "complete, lacking",
    [
        (None, ids_from_zero),
        (None, no_iscrowd),
        (None, no_area),
        (None, zero_areas),
        (filled_boxes, empty_boxes),
        (filled_boxes, boxes_outside),
        (filled_boxes, no_masks),
        (None, lines_beside_polygons),
        (None, lines_alone),
    ],
)
def test_incomplete_data_give_the_numbers_of_complete_data(dataset, evaluator, complete, lacking):
    MetadataCatalog.get(dataset).thing_dataset_id_to_contiguous_id = {1: 0, 2: 1}
    if complete:
        change_data(dataset, complete)
    expected = metrics(evaluator, dataset)
    change_data(dataset, lacking)
    pred = metrics(evaluator, dataset)
    assert list(pred) == list(expected)
    for name in expected:
        assert pred[name] == pytest.approx(expected[name], nan_ok=True)
    best = max(itertools.chain(*(scores.values() for scores in pred.values())))
    assert best == pytest.approx(100)


def test_corners_in_place_of_sides_are_replaced_by_the_masks_box(dataset):
    change_data(dataset, filled_boxes)
    change_data(dataset, corner_boxes)
    boxes = [annotation["bbox"] for annotation in coco_ground_truth(dataset).anns.values()]
    for box, (x0, y0, x1, y1) in zip(boxes, (SMALL, LARGE, MEDIUM, LARGE)):
        # The IoU of LARGE's corners with its mask is 200 x 200 / (300 x 220) = 0.61.
        right = [x0, y0, x1, y1] if (x0, y0, x1, y1) == LARGE else [x0, y0, x1 - x0, y1 - y0]
        assert box == right


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize("id_of", [str, "1{}".format, "cell {}".format, "#é{}".format])
def test_ids_as_text_give_the_numbers_of_int_ids(dataset, evaluator, id_of):
    """pycocotools iterates over the characters of an id that is text."""

    def to_text(content):
        for part, keys in (
            ("images", ["id"]),
            ("annotations", ["id", "image_id", "category_id"]),
            ("categories", ["id"]),
        ):
            for item in content[part]:
                item.update({key: id_of(item[key]) for key in keys})

    metadata = MetadataCatalog.get(dataset)
    metadata.thing_dataset_id_to_contiguous_id = {1: 0, 2: 1}
    expected = metrics(evaluator, dataset)
    change_data(dataset, to_text)
    MetadataCatalog.remove(dataset)
    MetadataCatalog.get(dataset).set(
        json_file=metadata.json_file,
        thing_dataset_id_to_contiguous_id={id_of(1): 0, id_of(2): 1},
    )
    pred = metrics(evaluator, dataset, id_of)
    assert list(pred) == list(expected)
    for name in expected:
        assert pred[name] == pytest.approx(expected[name], nan_ok=True)


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize(
    "change, words",
    [
        ({"segmentation": {"size": [240, 320], "counts": [5, 3]}}, "sum to 8 in 240 x 320 = 76800"),
        ({"segmentation": [[1, 1, 9, 1, 9, 1e8]]}, "the coordinate 1e+08"),
        ({"bbox": [0, 0, 1e9, 1]}, "the coordinate 1e+09"),
    ],
)
def test_masks_that_cannot_be_decoded_are_one_line(dataset, evaluator, change, words):
    change_data(dataset, lambda content: content["annotations"][1].update(change))
    with pytest.raises(ValueError) as error:
        metrics(evaluator, dataset)
    assert "1 of 4" in str(error.value) and "annotation 2 has" in str(error.value)
    assert words in str(error.value) and "\n" not in str(error.value)
