"""The command line of ``rpe-d2 demo`` and tools/demo.py."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import cv2
import numpy as np
from detectron2.data import Metadata
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from tqdm import tqdm

from rpe_d2.engine.run_classes import drawing_metadata
from rpe_d2.engine.run_errors import TooFewValues
from rpe_d2.inference.predictor import (
    Predictor,
    add_predictor_arguments,
    check_needs_only_pictures,
    find_images,
    planes_of,
    predictor_config,
    separate_overrides,
    with_instances,
)
from rpe_d2.utils.errors import one_line_errors
from rpe_d2.utils.files import free_path, make_writable_folder, write_new_file
from rpe_d2.utils.image_files import image_stem, printable
from rpe_d2.utils.images import to_rgb
from rpe_d2.utils.readable import UnreadableImage
from rpe_d2.utils.video_files import VideoWriter, open_video, truncation
from rpe_d2.visualization import Visualizer, draw_classes, draw_instances, instance_colors
from rpe_d2.visualization.instances import mask_iou, match_by_iou

RESULTS = "coco_instances_results.json"
# More labels than this would hide the image.
_MOST_LABELS = 30
_BOUNDARY_COLOR = np.array([255, 0, 0])
# Masks of consecutive frames are compared at about this number of pixels per side.
_TRACKING_SIDE = 160
_TRACKING_IOU = 0.3


def main(argv: Optional[List[str]] = None) -> int:
    """Runs the model of any Detectron2 configuration on images or a video.

    Writes one PNG per image, or one MP4, to ``--output``, and for a model that predicts instances
    ``coco_instances_results.json`` in COCO's results format. In it, image_id counts the files or
    frames from 1, and every entry also has their file_name. category_id is that of the training
    data if the run of the configuration recorded it, and otherwise the index of the class.

    Nothing is overwritten; a new file is called ``NAME-2.png`` and so on. Files that cannot be read
    are reported and skipped. If an error ends the run, the results of the previous images are
    written.

    Returns:
        Exit status: 0, 1 if no file could be read, or 2 with a one-line error if a key or a file is
        wrong.
    """
    args = _parse(argv)
    with one_line_errors():
        cfg = predictor_config(args)
        check_needs_only_pictures(cfg)
        files = find_images(args.input) if args.input else []
        named = f"--video-input {args.video_input}"
        video = open_video(named, args.video_input) if args.video_input else None
        output = Path(args.output)
        make_writable_folder("--output", output)
        predictor = Predictor(cfg)
        metadata = drawing_metadata(cfg, args.config_file)
        painter = _Painter(metadata, args.confidence_threshold)
    if video is not None:
        pictures = _run_video(predictor, painter, video, args.video_input, output)
    else:
        pictures = _run_images(predictor, painter, files, output)
    written: Dict[Path, None] = {}  # an ordered set, because all frames share one file
    results: List[Dict[str, Any]] = []
    predicts_instances = False
    with one_line_errors((OSError, TooFewValues)):
        try:
            for path, entries in pictures:
                written[path] = None
                results += entries or []
                predicts_instances |= entries is not None
        finally:
            for path in written:
                print(path)
            if predicts_instances:
                print(write_new_file(output / RESULTS, json.dumps(results).encode()))
    if not written:
        print(f"error: none of {len(files)} images could be read", file=sys.stderr)
        return 1
    if predicts_instances and not results:
        print(
            f"no instance has a score of {args.confidence_threshold} or more; a lower "
            "--confidence-threshold shows more",
            file=sys.stderr,
        )
    return 0


def _parse(argv: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Runs a model on images or a video. No display is needed."
    )
    add_predictor_arguments(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input", nargs="+", metavar="PATH", help="image files, folders or quoted globs"
    )
    source.add_argument("--video-input", metavar="FILE", help="a video that OpenCV can read")
    args = parser.parse_args(argv)
    separate_overrides(args)
    if args.input == []:
        parser.error("argument --input: expected at least one path before KEY VALUE overrides")
    return args


# The file of a drawn image and its entries in the results, None for a model without instances.
Drawn = Tuple[Path, Optional[List[Dict[str, Any]]]]


def _run_images(
    predictor: Predictor, painter: "_Painter", files: List[str], output: Path
) -> Iterator[Drawn]:
    names = planes_of(predictor.reader, files)
    for image_id, name in enumerate(tqdm(names, desc="images", unit="image"), start=1):
        try:
            image, result = _predict(predictor, name)
        except UnreadableImage as error:
            tqdm.write(f"skipped {error}", file=sys.stderr)
            continue
        picture, instances = painter.paint(image, result)
        painter.reset()
        content = cv2.imencode(".png", picture[:, :, ::-1])[1].tobytes()
        path = write_new_file(output / f"{image_stem(name)}.png", content)
        yield path, painter.results(instances, image_id, name)


def _predict(predictor: Predictor, name: str) -> Tuple[np.ndarray, Dict[str, Any]]:
    """Reads an image (H, W, 3) RGB and runs the model on it.

    Raises:
        UnreadableImage: The image cannot be read or is too small for the model.
    """
    image = predictor.reader.read(name)
    try:
        return to_rgb(image), predictor(predictor.reader.convert(image))
    except TooFewValues as error:
        raise UnreadableImage(f"{printable(name)}: {error}") from error


def _run_video(
    predictor: Predictor,
    painter: "_Painter",
    capture: cv2.VideoCapture,
    file: str,
    output: Path,
) -> Iterator[Drawn]:
    """Runs the model on the frames of a video and writes a video of the results.

    Raises:
        OSError: If no frame can be read, or the video cannot be written.
    """
    path = free_path(output / f"{Path(file).stem}.mp4")
    frames_per_second = capture.get(cv2.CAP_PROP_FPS) or 25.0
    count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    writer, frame_id = None, 0
    try:
        progress = tqdm(_frames(capture), total=max(count, 0) or None, desc="frames", unit="frame")
        for frame_id, bgr in enumerate(progress, start=1):
            rgb = np.ascontiguousarray(bgr[:, :, ::-1])
            picture, instances = painter.paint(rgb, predictor(predictor.reader.convert(rgb)))
            if writer is None:
                writer = VideoWriter(path, frames_per_second, picture.shape[:2])
            writer.write(picture)
            yield path, painter.results(instances, frame_id, f"{file}#{frame_id}")
        missing = truncation(capture, frame_id)
    finally:
        capture.release()
        if writer is not None:
            writer.release()
    if writer is None:
        raise OSError(f"--video-input {file}: no frame could be read")
    if missing:
        print(f"warning: --video-input {file}: {missing}", file=sys.stderr)


def _frames(capture: cv2.VideoCapture) -> Iterator[np.ndarray]:
    while True:
        success, frame = capture.read()
        if not success:
            return
        yield frame


class _Painter:
    """Draws the output of a model; an instance keeps its color through the frames of a video."""

    def __init__(self, metadata: Metadata, min_score: float):
        self._metadata = metadata
        self._min_score = min_score
        self._names: List[str] = metadata.get("thing_classes", [])
        ids = metadata.get("thing_dataset_id_to_contiguous_id", {})
        self._category_of = {index: category for category, index in ids.items()}
        self.reset()

    def reset(self) -> None:
        """Forgets the instances of the previous frame, so that a new sequence starts."""
        self._last_masks: Optional[np.ndarray] = None
        self._last_numbers = np.zeros(0, int)
        self._next_number = 0

    def paint(
        self, rgb: np.ndarray, output: Dict[str, Any]
    ) -> Tuple[np.ndarray, Optional[Instances]]:
        """Draws the output of a model on its image.

        Args:
            rgb: (H, W, 3) uint8, the image.
            output: the model's output for it.

        Returns:
            The drawing (H, W, 3) uint8 RGB, and the instances above the threshold, if there are
            any.
        """
        rgb = np.ascontiguousarray(rgb)
        output = with_instances(output)
        instances = None
        if "instances" in output:
            instances = output["instances"].to("cpu")
            instances = instances[instances.scores >= self._min_score]
            if instances.has("pred_masks") and "panoptic_seg" not in output:
                return self._paint_masks(rgb, instances), instances
        if "boundaries" in output:
            strength = output["boundaries"].cpu().numpy()[:, :, None]  # (H, W, 1), 0-1
            return (rgb * (1 - strength) + _BOUNDARY_COLOR * strength).astype(np.uint8), None
        if "sem_seg" in output and "panoptic_seg" not in output and instances is None:
            return draw_classes(rgb, output["sem_seg"].argmax(dim=0), self._metadata), None
        visualizer = Visualizer(rgb, self._metadata)
        if "panoptic_seg" in output:
            segments, info = output["panoptic_seg"]
            drawn = visualizer.draw_panoptic_seg_predictions(segments.cpu(), info)
        else:
            drawn = visualizer.draw_instance_predictions(instances)
        return drawn.get_image(), instances

    def results(
        self, instances: Optional[Instances], image_id: int, file_name: str
    ) -> Optional[List[Dict[str, Any]]]:
        """Returns the COCO results of one image, each with its file name, or None for None."""
        if instances is None:
            return None
        results = instances_to_coco_json(instances, image_id)
        for result in results:
            index = result["category_id"]
            result["category_id"] = self._category_of.get(index, index)
            result["file_name"] = file_name
        return results

    def _paint_masks(self, rgb: np.ndarray, instances: Instances) -> np.ndarray:
        masks = instances.pred_masks.numpy().astype(bool)
        numbers = self._track(masks)
        colors = instance_colors(int(numbers.max(initial=-1)) + 1)[numbers]
        return draw_instances(rgb, masks, colors, self._labels(instances))

    def _track(self, masks: np.ndarray) -> np.ndarray:
        """Numbers instances; one that overlaps an instance of the last frame keeps its number."""
        step = max(1, max(masks.shape[1:]) // _TRACKING_SIDE)
        small = masks[:, ::step, ::step]
        numbers = np.full(len(masks), -1)
        if self._last_masks is not None and self._last_masks.shape[1:] == small.shape[1:]:
            match = match_by_iou(mask_iou(small, self._last_masks), _TRACKING_IOU)
            numbers[match >= 0] = self._last_numbers[match[match >= 0]]
        new = np.flatnonzero(numbers < 0)
        numbers[new] = self._next_number + np.arange(len(new))
        self._next_number += len(new)
        self._last_masks, self._last_numbers = small, numbers
        return numbers

    def _labels(self, instances: Instances) -> List[str]:
        classes = instances.pred_classes.tolist()
        if len(self._names) == 1 or len(classes) > _MOST_LABELS:
            return [""] * len(classes)
        known = dict(enumerate(self._names))
        return [
            f"{known.get(index, f'class {index}')} {100 * score:.0f}%"
            for index, score in zip(classes, instances.scores.tolist())
        ]
