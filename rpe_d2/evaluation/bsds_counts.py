"""Counts of the boundary benchmark for many images: on several processes, each kept on disk once it is there."""

import hashlib
import json
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np

from rpe_d2.ops.boundary_scores import TOLERANCE, count_boundary_matches, count_human_matches
from rpe_d2.utils.errors import one_line
from rpe_d2.utils.files import replacing_file

from .bsds_files import check_sizes, read_boundary_annotations, read_boundary_map

_KIND = "bsds_boundary_counts"
# To be raised when the same files give other counts.
_VERSION = 1


class BoundaryImage(NamedTuple):
    """An image of the benchmark.

    Attributes:
        name: file name without its ending.
        prediction: path of the boundary map.
        ground_truth: path of the human boundaries.
    """

    name: str
    prediction: Path
    ground_truth: Path


class ImageCounts(NamedTuple):
    """What was counted in an image.

    Attributes:
        matches: (T, 4) int64, see :func:`rpe_d2.ops.boundary_scores.count_boundary_matches`.
        human: (4,) int64, see :func:`rpe_d2.ops.boundary_scores.count_human_matches`.
        seconds: of one core.
    """

    matches: np.ndarray
    human: np.ndarray
    seconds: float


class CountStore:
    """A folder with one JSON file an image.

    Its name says what it was counted from: the contents of both files and the number of thresholds. So other
    predictions, another ground truth or other thresholds never meet stale counts, and nothing is ever replaced.
    """

    def __init__(self, folder: Path, num_thresholds: int):
        """
        Args:
            folder: made when the first counts are written.
            num_thresholds: T.
        """
        self.folder = folder
        self._num_thresholds = num_thresholds

    def path(self, image: BoundaryImage) -> Path:
        """Where counts of an image's files, as they are now, belong.

        Raises:
            OSError: one of the image's files cannot be read.
        """
        parts = [f"{_VERSION} {self._num_thresholds} {TOLERANCE} {image.prediction.suffix.lower()}"]
        for file in (image.prediction, image.ground_truth):
            parts.append(hashlib.sha256(file.read_bytes()).hexdigest())
        key = hashlib.sha256(" ".join(parts).encode()).hexdigest()
        return self.folder / f"{image.name}.{key[:24]}.json"

    def load(self, path: Path) -> Optional[ImageCounts]:
        """Counts that were written to a path; None where there are none.

        Raises:
            ValueError: what has this name was not written here.
        """
        try:
            content = json.loads(path.read_bytes())
            counts = ImageCounts(
                np.array(content["matches"], dtype=np.int64),
                np.array(content["human"], dtype=np.int64),
                float(content["seconds"]),
            )
            shapes = counts.matches.shape, counts.human.shape
            if content["kind"] != _KIND or shapes != ((self._num_thresholds, 4), (4,)):
                raise ValueError(f"kind {content['kind']}, shapes {shapes}")
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: holds no counts of this tool; move it away") from error
        return counts

    def save(self, path: Path, counts: ImageCounts) -> None:
        """Writes the counts, all or nothing."""
        content = {
            "kind": _KIND,
            "seconds": round(counts.seconds, 3),
            "human": counts.human.tolist(),
            "matches": counts.matches.tolist(),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing_file(path) as file:
            file.write(json.dumps(content).encode() + b"\n")


def find_boundary_images(
    predictions: Path, ground_truth: Path, suffixes: Sequence[str]
) -> Tuple[List[BoundaryImage], List[str], List[str]]:
    """Pairs boundary maps with the .mat files of the same name.

    Returns:
        The pairs, in the order of their names; names without a map; names without ground truth.

    Raises:
        ValueError: two maps have one name.
        OSError: a folder cannot be read.
    """
    truths = {path.stem: path for path in ground_truth.iterdir() if path.suffix.lower() == ".mat"}
    maps = {}
    for path in sorted(predictions.iterdir()):
        if path.suffix.lower() not in suffixes:
            continue
        if path.stem in maps:
            raise ValueError(f"{path}: {maps[path.stem].name} has the same name; allowed: one map")
        maps[path.stem] = path
    both = sorted(truths.keys() & maps.keys())
    images = [BoundaryImage(name, maps[name], truths[name]) for name in both]
    return images, sorted(truths.keys() - maps.keys()), sorted(maps.keys() - truths.keys())


def count_images(
    images: Sequence[BoundaryImage], num_thresholds: int, num_workers: int
) -> Iterator[Tuple[BoundaryImage, Union[ImageCounts, str]]]:
    """Counts images and yields each as it is done, with what is wrong with it, in one line, instead of its counts.

    Args:
        images: in any order.
        num_thresholds: T.
        num_workers: processes; 1: this one.

    Raises:
        ValueError: a process was killed.
    """
    num_workers = min(num_workers, len(images))
    if num_workers <= 1:
        for image in images:
            yield image, _count_image(image, num_thresholds)
        return
    # What the server forks has imported everything, and has computed nothing.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(
        num_workers, mp_context=context, initializer=_follow_the_main_process
    )
    try:
        waiting = {pool.submit(_count_image, image, num_thresholds): image for image in images}
        for future in as_completed(waiting):
            yield waiting[future], future.result()
    except BrokenProcessPool as error:
        raise ValueError(
            f"one of {num_workers} processes was killed, which a lack of memory does; try fewer --workers"
        ) from error
    finally:  # also where the caller is interrupted: images that have not begun do not begin any more
        pool.shutdown(cancel_futures=True)


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _count_image(image: BoundaryImage, num_thresholds: int) -> Union[ImageCounts, str]:
    start = time.process_time()
    try:
        annotations = read_boundary_annotations(str(image.ground_truth))
        boundaries = read_boundary_map(str(image.prediction))
        check_sizes(boundaries, annotations, str(image.prediction))
    except (ValueError, OSError) as error:
        return one_line(error)
    matches = count_boundary_matches(boundaries, annotations, num_thresholds)
    human = count_human_matches(annotations)
    return ImageCounts(matches, human, time.process_time() - start)


def _follow_the_main_process() -> None:
    """In a process of the pool: Ctrl-C is the main process's affair, and where that was killed this one ends, too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
