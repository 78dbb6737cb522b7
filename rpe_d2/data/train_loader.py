"""A training loader whose order depends only on the seed, so that runs can be resumed exactly."""

import itertools
import os
import random
import re
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader, get_detection_dataset_dicts
from detectron2.data.common import DatasetFromList
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from rpe_d2.utils.readable import UnreadableImage
from rpe_d2.utils.worker_signals import leave_signals_to_the_trainer

__all__ = ["DeadWorker", "ResumableLoader", "build_resumable_train_loader", "seed_all"]

SKIPPED = "skipped"  # key of a mapped dict: unreadable files that it replaces, with the reasons

Mapper = Callable[[Dict[str, Any]], Optional[Dict[str, Any]]]


class DeadWorker(RuntimeError):
    """A data-loading process died. The message is one line with the files it was reading."""


def seed_all(*numbers: int) -> None:
    """Seeds the generators of Python, NumPy and torch with a hash of non-negative numbers."""
    seeds = np.random.SeedSequence(numbers).generate_state(3).tolist()
    random.seed(seeds[0])
    np.random.seed(seeds[1])
    torch.manual_seed(seeds[2])


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seeds like :func:`seed_all`, and restores the states of the CPU generators at the end."""
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    seed_all(*numbers)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])


class TrainingOrder(Sampler):
    """The images of one process in training order, as (number, index) pairs.

    The numbers are unique over all processes. They seed the augmentation of an image, so that it
    does not depend on the worker process.
    """

    def __init__(
        self, sampler: Sampler, batch_size: int, landscape: Optional[Sequence[bool]] = None
    ):
        """
        Args:
            sampler: endless stream of the indices of this process.
            batch_size: number of images of this process in a batch.
            landscape: whether each image is wider than high. If given, all images of a batch have
                the same value. This is Detectron2's grouping by aspect ratio, done before the
                images are read.
        """
        self.sampler = sampler
        self.batch_size = batch_size
        self.landscape = landscape
        self.start = 0  # number of images of this process to skip when a run is resumed
        self._rank, self._world_size = comm.get_rank(), comm.get_world_size()

    def __iter__(self) -> Iterator[Tuple[int, int]]:
        indices = iter(self.sampler) if self.landscape is None else self._grouped()
        for number, index in itertools.islice(enumerate(indices), self.start, None):
            yield number * self._world_size + self._rank, index

    def _grouped(self) -> Iterator[int]:
        buckets: Dict[bool, List[int]] = {True: [], False: []}
        for index in self.sampler:
            bucket = buckets[self.landscape[index]]
            bucket.append(index)
            if len(bucket) == self.batch_size:
                yield from bucket
                bucket.clear()


class RepeatableDataset(Dataset):
    """Maps (number, index) to an input of the model that depends on nothing but the pair.

    An image or annotation that cannot be read is replaced by another one. The unreadable file and
    the reason are added to the dict that replaces it.
    """

    def __init__(
        self, dataset: Dataset, mapper: Mapper, seed: int, max_unreadable: int, num_workers: int
    ):
        """
        Args:
            dataset: dataset of Detectron2's dataset dicts.
            mapper: maps a dataset dict to the input of the model, or to None to request another
                image.
            seed: seed of the augmentations.
            max_unreadable: largest number of replacements for one image.
            num_workers: number of worker processes.
        """
        self.dataset = dataset
        self.mapper = mapper
        self.seed = seed
        self.max_unreadable = max_unreadable
        # Process id and index of the image that each worker is reading, or -1. Shared with workers.
        self.reading = torch.full((max(num_workers, 1), 2), -1, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: Tuple[int, int]) -> Dict[str, Any]:
        number, index = item
        leave_signals_to_the_trainer()
        worker = get_worker_info()
        skipped: Dict[str, str] = {}
        with seeded(self.seed, number):
            for attempt in itertools.count():
                if worker is not None:
                    self.reading[worker.id] = torch.tensor([os.getpid(), index])
                mapped = self._mapped(index, skipped, attempt)
                if worker is not None:
                    self.reading[worker.id, 1] = -1
                if mapped is not None:
                    return {**mapped, SKIPPED: skipped} if skipped else mapped
                index = np.random.randint(len(self.dataset))

    def _mapped(
        self, index: int, skipped: Dict[str, str], attempt: int
    ) -> Optional[Dict[str, Any]]:
        dataset_dict = self.dataset[index]
        try:
            return self.mapper(dataset_dict)
        except Exception as error:  # a broken annotation may raise anything
            file_name = str(dataset_dict.get("file_name", index))
            reason = " ".join(str(error).split())
            if not isinstance(error, UnreadableImage):
                reason = f"{file_name}: {type(error).__name__}: {reason}"
            skipped[file_name] = reason
            # The dataset may be small, and may contain a file several times.
            if len(skipped) > self.max_unreadable or attempt >= 10 * len(self.dataset):
                raise UnreadableImage(unreadable_message(skipped, self.max_unreadable)) from error
            return None


def unreadable_message(reasons: Dict[str, str], limit: int) -> str:
    """Formats the error for more unreadable images than allowed, in one line.

    Args:
        reasons: reasons by file name.
        limit: the number of unreadable images allowed.
    """
    last = list(reasons.values())[-1]
    return f"{last} (unreadable images: {len(reasons)}; DATALOADER.MAX_UNREADABLE is {limit})"


class ResumableLoader:
    """Endless batches, each a list of dicts, that can start anywhere in the training order.

    Attributes:
        batch_size: number of images of this process in a batch.
    """

    def __init__(self, loader: DataLoader, order: TrainingOrder, dataset: RepeatableDataset):
        self._loader = loader
        self._order = order
        self._dataset = dataset
        self.batch_size = order.batch_size

    def start_at(self, images_seen: int) -> None:
        """Skips the images that all processes together have seen; must precede iteration."""
        self._order.start = images_seen // comm.get_world_size()

    def __iter__(self) -> Iterator[List[Dict[str, Any]]]:
        """
        Raises:
            DeadWorker: While iterating, a process died during the transfer of its data.
        """
        return _named_deaths(iter(self._loader))

    def dead_worker(self, error: Exception) -> Optional[DeadWorker]:
        """Converts torch's error about dead workers to one that names the files they were reading.

        torch detects dead workers by a signal, so the error may be raised anywhere and not only
        where data are awaited.

        Returns:
            The error, or None if ``error`` is not about dead workers.
        """
        match = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", str(error))
        if not match:
            return None
        pids = [int(pid) for pid in match[1].split(",")]
        own = [index for pid, index in self._dataset.reading.tolist() if pid in pids]
        files = [
            self._dataset.dataset[index].get("file_name", str(index)) for index in own if index >= 0
        ]
        when = " between two images" if own else ""  # else it was another loader, for evaluation
        when = " while it read " + ", ".join(files) if files else when
        reason = " ".join(str(error).split())
        return DeadWorker(f"a data-loading process died{when} ({reason})")


def _named_deaths(batches: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from batches
    except (ConnectionError, EOFError) as error:  # data loading uses no other connection
        reason = f"{type(error).__name__}: {error}"
        raise DeadWorker(
            f"a data-loading process died while it transferred its data ({reason})"
        ) from error


def build_resumable_train_loader(
    cfg: CfgNode, mapper: Mapper, same_classes: bool = True
) -> Union[ResumableLoader, DataLoader]:
    """Builds Detectron2's training loader so that batches depend only on ``SEED`` and their number.

    Neither the number of worker processes nor earlier computation changes them. An iterable
    dataset has no order to resume, and gets Detectron2's loader.

    Args:
        cfg: the configuration. A negative ``SEED`` is replaced by a random one.
        mapper: maps a dataset dict to the input of the model.
        same_classes: whether all data sets must have the same classes.

    Raises:
        UnreadableImage: While iterating, more than ``DATALOADER.MAX_UNREADABLE`` images cannot be
            read.
    """
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD
    dicts = get_detection_dataset_dicts(
        cfg.DATASETS.TRAIN,
        filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        min_keypoints=keypoints.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0,
        proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
        check_consistency=same_classes,
    )
    if not isinstance(dicts, list):
        return build_detection_train_loader(cfg, mapper=mapper)
    can_group = all("width" in item and "height" in item for item in dicts)
    landscape = [item["width"] > item["height"] for item in dicts] if can_group else None
    dataset = DatasetFromList(dicts, copy=False)
    ungrouped = cfg.clone()
    ungrouped.defrost()
    ungrouped.DATALOADER.ASPECT_RATIO_GROUPING = False
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    with seeded(seed):  # Detectron2's samplers draw their seed from NumPy's generator
        sampler = build_detection_train_loader(
            ungrouped, mapper=mapper, dataset=dataset
        ).dataset.sampler
    order = TrainingOrder(
        sampler,
        cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(),
        landscape if cfg.DATALOADER.ASPECT_RATIO_GROUPING else None,
    )
    workers = cfg.DATALOADER.NUM_WORKERS
    repeatable = RepeatableDataset(dataset, mapper, seed, cfg.DATALOADER.MAX_UNREADABLE, workers)
    loader = build_detection_train_loader(
        repeatable,
        mapper=None,
        sampler=order,
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        aspect_ratio_grouping=False,
        num_workers=workers,
    )
    return ResumableLoader(loader, order, repeatable)
