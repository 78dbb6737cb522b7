"""The training loader: order by seed alone, resumption anywhere, and broken files."""

import collections
import itertools
import os
import signal

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from rpe_d2 import add_rpe_config
from rpe_d2.data import (
    DeadWorker,
    ResumableLoader,
    UnreadableImage,
    build_resumable_train_loader,
)

NAME = "train_loader_test"
COUNT = 11
BROKEN = {"3.png", "7.png"}


@pytest.fixture(scope="module", autouse=True)
def data():
    """Registers eleven images that are numbers. Every third one is higher than wide."""
    dicts = [
        {"file_name": f"{i}.png", "index": i, "width": 20 if i % 3 else 10, "height": 15}
        for i in range(COUNT)
    ]
    DatasetCatalog.register(NAME, lambda: dicts)
    MetadataCatalog.get(NAME).set(thing_classes=["thing"])
    yield
    DatasetCatalog.remove(NAME)


def augmented(item):
    """A mapper that draws from all generators that augmentations use."""
    noise = [np.random.rand(), float(torch.rand(())), np.random.randint(1000)]
    return {**item, "noise": noise, "pid": os.getpid()}


def broken(item):
    if item["file_name"] in BROKEN:
        raise KeyError("segmentation")
    return augmented(item)


def all_broken(item):
    raise UnreadableImage(f"{item['file_name']}: truncated")


def deadly(item):
    if item["index"] == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return augmented(item)


def loader(mapper=augmented, workers=0, batch=3, grouping=True, seed=1, **keys):
    cfg = get_cfg()
    add_rpe_config(cfg)
    cfg.SEED = seed
    cfg.DATASETS.TRAIN = (NAME,)
    cfg.SOLVER.IMS_PER_BATCH = batch
    cfg.DATALOADER.NUM_WORKERS = workers
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = grouping
    for key, value in keys.items():
        cfg.DATALOADER[key] = value
    return build_resumable_train_loader(cfg, mapper)


def batches(made, count):
    return [
        [(item["index"], *item["noise"]) for item in batch]
        for batch in itertools.islice(made, count)
    ]


def test_batches_do_not_depend_on_workers_or_on_what_was_drawn_before():
    expected = batches(loader(), 9)
    for workers in (1, 2, 3):
        np.random.rand(workers)
        torch.rand(workers)
        assert batches(loader(workers=workers), 9) == expected
    assert batches(loader(seed=2), 9) != expected


@pytest.mark.parametrize("grouping", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_resumes_where_another_loader_stopped(workers, grouping):
    expected = batches(loader(grouping=grouping), 12)
    for done in (1, 5, 8):
        made = loader(workers=workers, grouping=grouping)
        made.start_at(done * 3)
        assert batches(made, 12 - done) == expected[done:]


def test_reading_leaves_the_generators_as_they_were():
    torch.manual_seed(0)
    np.random.seed(0)
    expected = torch.rand(3), np.random.rand(3)
    made = iter(loader())
    next(made)  # torch draws a seed when iteration starts
    torch.manual_seed(0)
    np.random.seed(0)
    batches(made, 4)
    assert torch.equal(torch.rand(3), expected[0])
    np.testing.assert_array_equal(np.random.rand(3), expected[1])


def test_batches_have_one_orientation_and_images_equal_frequency():
    drawn = batches(loader(), 11 * 20)
    for batch in drawn:
        assert len({index % 3 == 0 for index, *_ in batch}) == 1
    counts = collections.Counter(index for batch in drawn for index, *_ in batch)
    assert len(counts) == COUNT and max(counts.values()) - min(counts.values()) <= 2


def test_images_that_repeat_are_augmented_differently():
    drawn = [item for batch in batches(loader(), 22) for item in batch]
    assert len({noise for _, noise, *_ in drawn}) == len(drawn)


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_annotations_are_replaced_and_named(workers):
    made = loader(broken, workers=workers)
    reasons, seen = {}, []
    for batch in itertools.islice(made, 12):
        assert len(batch) == 3
        for item in batch:
            seen.append(item["file_name"])
            reasons.update(item.get("skipped", {}))
    assert not BROKEN & set(seen) and len(set(seen)) == COUNT - len(BROKEN)
    assert set(reasons) == BROKEN
    for file_name, reason in reasons.items():
        assert reason == f"{file_name}: KeyError: 'segmentation'"


@pytest.mark.parametrize("workers", [0, 1])
def test_one_broken_image_more_than_allowed_ends_it(workers):
    made = loader(all_broken, workers=workers, MAX_UNREADABLE=4)
    with pytest.raises(UnreadableImage, match="truncated .*DATALOADER.MAX_UNREADABLE is 4"):
        next(iter(made))


def test_a_dead_worker_names_its_file():
    made = loader(deadly, workers=2)
    with pytest.raises(RuntimeError, match="DataLoader worker") as caught:
        batches(made, 12)
    dead = made.dead_worker(caught.value)
    assert isinstance(dead, DeadWorker) and "died while it read 5.png" in str(dead)
    in_a_save = OSError(f"checkpoint model.pth could not be written ({caught.value})")
    assert "while it read 5.png (checkpoint model.pth" in str(made.dead_worker(in_a_save))
    assert made.dead_worker(RuntimeError("out of memory")) is None


def test_a_broken_connection_is_reported_as_a_dead_worker():
    """torch reports dead workers itself, unless the connection breaks first."""

    def broken_off():
        yield ["batch"]
        raise ConnectionResetError(104, "Connection reset by peer")

    made = iter(ResumableLoader(broken_off(), loader()._order, loader()._dataset))
    assert next(made) == ["batch"]
    with pytest.raises(
        DeadWorker, match="died while it transferred its data .ConnectionResetError"
    ):
        next(made)


def test_a_dataset_without_any_readable_image_raises():
    made = loader(all_broken, MAX_UNREADABLE=10**6)
    with pytest.raises(UnreadableImage, match="unreadable images: "):
        next(iter(made))
