"""The files of ``rpe-d2 precompute-proposals``: those of interrupted runs and the finished ones."""

import json
import pickle
from pathlib import Path
from typing import Any, Dict, Iterator, List, Set

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.structures import Boxes, BoxMode, Instances

from rpe_d2.evaluation.mask_proposal_evaluator import proposal_results
from rpe_d2.utils.files import make_writable_folder, replacing_file
from rpe_d2.utils.json_text import parse_json

from .mask_refiner import check_header

_PARTIAL = ".partial"  # suffix of the file with the finished images
_EVALUATED = 1000  # proposals of an image


class ProposalStore:
    """The proposals of the finished images of a run, one line of JSON for each image.

    A run that was interrupted or killed is continued by a run with the same header.
    """

    def __init__(self, output: Path, header: Dict[str, Any]):
        """
        Args:
            output: the file that the run will write.
            header: everything that the output depends on.

        Raises:
            ValueError: The output exists, or another run left its finished images.
        """
        if output.exists():
            raise ValueError(f"--output {output} exists already; it is not overwritten")
        make_writable_folder("--output", output.parent)
        self.output = output
        self.path = output.with_name(output.name + _PARTIAL)
        self.finished: Set[str] = set()
        if self.path.exists() and self._repair(header):
            self.finished = {json.dumps(entry["image_id"]) for entry in self.entries()}
        else:
            self.path.write_text(json.dumps(header) + "\n")

    def _repair(self, header: Dict[str, Any]) -> bool:
        """Checks the header and cuts a last line that an interruption left incomplete.

        Returns:
            Whether there is a header.
        """
        end = 0  # of the last complete line
        with open(self.path, "rb") as file:
            first = file.readline()
            if not first.endswith(b"\n"):
                return False
            check_header(self.path, first.decode("utf-8", "replace"), header)
            end = len(first)
            for line in file:
                if line.endswith(b"\n"):
                    end += len(line)
        with open(self.path, "r+b") as file:
            file.truncate(end)
        return True

    def add(self, image_id: Any, proposals: Dict[str, Any], seconds: float) -> None:
        """Stores the proposals of an image.

        Args:
            image_id: id of the image.
            proposals: ``scores`` (N,) and either ``boxes`` (N, 4), or ``rles``, N masks.
            seconds: CPU time.
        """
        entry = {"image_id": image_id, "seconds": round(seconds, 4)}
        for name, values in proposals.items():
            entry[name] = values.tolist() if isinstance(values, np.ndarray) else values
        with open(self.path, "a") as file:
            file.write(json.dumps(entry) + "\n")
        self.finished.add(json.dumps(image_id))

    def entries(self) -> Iterator[Dict[str, Any]]:
        """Reads the stored proposals, one image at a time."""
        with open(self.path) as file:
            next(file)
            for line in file:
                yield parse_json(line, self.path)

    def evaluation_results(self, sizes: Dict[Any, Any]) -> List[Dict[str, Any]]:
        """Converts the best 1,000 proposals of every image to COCO's results format.

        Args:
            sizes: (H, W) by the id of the image.
        """
        results = []
        for entry in self.entries():
            image_id, scores = entry["image_id"], entry["scores"]
            if "boxes" in entry:
                proposals = Instances(
                    sizes[image_id],
                    proposal_boxes=Boxes(_boxes(entry)),
                    objectness_logits=torch.tensor(scores, dtype=torch.float32),
                )
                results += proposal_results({"proposals": proposals}, image_id)[0]
                continue
            results += [
                {
                    "image_id": image_id,
                    "segmentation": rle,
                    "bbox": mask_util.toBbox(rle).tolist(),
                    "score": score,
                }
                for rle, score in zip(entry["rles"][:_EVALUATED], scores)
            ]
        return results

    def finish(self, image_ids: List[Any]) -> None:
        """Writes the output and deletes the file of the finished images.

        Boxes are written in Detectron2's format of proposal files, and masks in COCO's format of
        results.

        Args:
            image_ids: the ids of all images, in the order of the output.
        """
        with replacing_file(self.output) as file:
            if self.output.suffix == ".json":
                self._write_results(file)
            else:
                self._write_boxes(file, image_ids)
        self.path.unlink()

    def _write_results(self, file: Any) -> None:
        separator = b"["
        for entry in self.entries():
            for rle, score in zip(entry["rles"], entry["scores"]):
                # COCO's format asks for a category; proposals have none.
                result = {"image_id": entry["image_id"], "category_id": 1}
                result.update(segmentation=rle, score=score)
                file.write(separator + json.dumps(result).encode())
                separator = b",\n"
        file.write(b"[]\n" if separator == b"[" else b"]\n")

    def _write_boxes(self, file: Any, image_ids: List[Any]) -> None:
        by_id = {
            json.dumps(entry["image_id"]): (
                _boxes(entry).numpy(),
                np.array(entry["scores"], np.float32),
            )
            for entry in self.entries()
        }
        found = [by_id[json.dumps(image_id)] for image_id in image_ids]
        content = {
            "ids": image_ids,
            "boxes": [boxes for boxes, _ in found],
            "objectness_logits": [scores for _, scores in found],
            "bbox_mode": int(BoxMode.XYXY_ABS),  # a plain number, which needs no class to load
        }
        pickle.dump(content, file, protocol=4)


def _boxes(entry: Dict[str, Any]) -> torch.Tensor:
    return torch.tensor(entry["boxes"], dtype=torch.float32).reshape(-1, 4)
