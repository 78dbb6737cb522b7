"""Match counts of the BSDS contour benchmark for many images, in parallel and cached on disk."""

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
from rpe_d2.utils.image_files import check_is_file
from rpe_d2.utils.json_text import parse_json

from .bsds_files import check_sizes, read_boundary_annotations, read_boundary_map

_KIND = "bsds_boundary_counts"
# To be incremented when the same files give different counts.
_VERSION = 1


class BoundaryImage(NamedTuple):
    """An image of the benchmark.

    Attributes:
        name: file name without suffix.
        prediction: path of the contour map.
        ground_truth: path of the annotators' contours.
    """

    name: str
    prediction: Path
    ground_truth: Path


class ImageCounts(NamedTuple):
    """The counts of an image.

    Attributes:
        matches: (T, 4) int64 from :func:`rpe_d2.ops.boundary_scores.count_boundary_matches`.
        human: (4,) int64 from :func:`rpe_d2.ops.boundary_scores.count_human_matches`.
        seconds: CPU time of one core.
    """

    matches: np.ndarray
    human: np.ndarray
    seconds: float


class CountStore:
    """A folder with one JSON file of counts per image.

    The name of a file includes a hash of the contents of both input files and of the number of
    thresholds. Other predictions, ground truth or thresholds therefore never read stale counts,
    and no file is ever replaced.
    """

    def __init__(self, folder: Path, num_thresholds: int):
        """
        Args:
            folder: the folder, which is created when the first counts are written.
            num_thresholds: number of thresholds T.
        """
        self.folder = folder
        self._num_thresholds = num_thresholds

    def path(self, image: BoundaryImage) -> Path:
        """Returns the path of the counts for the current contents of an image's files.

        Raises:
            OSError, ValueError: One of the image's files cannot be read.
        """
        parts = [f"{_VERSION} {self._num_thresholds} {TOLERANCE} {image.prediction.suffix.lower()}"]
        for file in (image.prediction, image.ground_truth):
            check_is_file(str(file))
            parts.append(hashlib.sha256(file.read_bytes()).hexdigest())
        key = hashlib.sha256(" ".join(parts).encode()).hexdigest()
        return self.folder / f"{image.name}.{key[:24]}.json"

    def load(self, path: Path) -> Optional[ImageCounts]:
        """Reads the counts at a path, or returns None if there is no such file.

        Raises:
            ValueError: The file was not written by this class.
        """
        try:
            content = parse_json(path.read_bytes(), path)
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
        """Writes the counts atomically."""
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
    """Pairs contour maps with the .mat files of the same name.

    Args:
        predictions: folder of contour maps.
        ground_truth: folder of .mat files.
        suffixes: suffixes of contour maps, in lower case.

    Returns:
        The pairs in the order of their names, the names without a map, and the names without
        ground truth.

    Raises:
        ValueError: Two maps have the same name.
        OSError: A folder cannot be read.
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
    """Counts matches in images and yields each image when it is done.

    Args:
        images: images in any order.
        num_thresholds: number of thresholds T.
        num_workers: number of processes. 1 counts in this process.

    Yields:
        The image and its counts, or a message of one line if one of its files is invalid.

    Raises:
        ValueError: A process was killed.
    """
    num_workers = min(num_workers, len(images))
    if num_workers <= 1:
        for image in images:
            yield image, _count_image(image, num_thresholds)
        return
    # Processes are forked from a server that has imported everything and computed nothing.
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
            f"one of {num_workers} processes was killed, which happens when memory runs out;"
            " try fewer --workers"
        ) from error
    finally:  # also if the caller is interrupted: pending images are canceled
        pool.shutdown(cancel_futures=True)


def usable_cores() -> int:
    """Returns the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _count_image(image: BoundaryImage, num_thresholds: int) -> Union[ImageCounts, str]:
    start = time.process_time()
    try:
        annotations = read_boundary_annotations(str(image.ground_truth))
        boundaries = read_boundary_map(str(image.prediction))
        check_sizes(boundaries, annotations, str(image.prediction))
        matches = count_boundary_matches(boundaries, annotations, num_thresholds)
        human = count_human_matches(annotations)
    except (ValueError, OSError) as error:
        return one_line(error)
    return ImageCounts(matches, human, time.process_time() - start)


def _follow_the_main_process() -> None:
    """Initializes a worker: ignores Ctrl-C, which the main process handles, and ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
