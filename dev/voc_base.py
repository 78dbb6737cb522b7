#!/usr/bin/env python3
"""Predicts the classes of VOC pictures with a network trained by others, as input of a refiner.

usage: python dev/voc_base.py MODEL.tflite OUTPUT [--data ../shared/data/voc2012_val] [--shard I/N]

The networks are DeepLabv3 on MobileNetV2 in TFLite's format; pip install ai-edge-litert runs them.
Their output is an argmax, whose input "ResizeBilinear_2" has the logits. For every picture an NPZ
file is written with "probabilities", (21, H, W) uint8, of which 255 is 1. Pictures that have one
are skipped.
"""

import argparse
import sys
from pathlib import Path
from typing import Tuple

import cv2
import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rpe_d2.utils.files import replacing_file  # noqa: E402
from rpe_d2.utils.probability_maps import encode_probabilities  # noqa: E402

SIDE = 513
_LOGITS = "ResizeBilinear_2"
_PADDING = 128  # close to the mean of the pictures, which the network sees around a picture


class DeepLab:
    """A quantized DeepLab of VOC's classes."""

    def __init__(self, model: str):
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(
            model_path=model, num_threads=1, experimental_preserve_all_tensors=True
        )
        self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._output = self._interpreter.get_output_details()[0]["index"]
        (self._logits,) = (
            d for d in self._interpreter.get_tensor_details() if d["name"].endswith(_LOGITS)
        )

    def logits(self, image: np.ndarray) -> np.ndarray:
        """Predicts the logits (H, W, 21) float32 of an image (H, W, 3) uint8 RGB."""
        height, width = image.shape[:2]
        factor = SIDE / max(height, width)
        size = (round(width * factor), round(height * factor))
        padded = np.full((1, SIDE, SIDE, 3), _PADDING, np.uint8)
        padded[0, : size[1], : size[0]] = cv2.resize(image, size)
        self._interpreter.set_tensor(self._input, padded)
        self._interpreter.invoke()
        scale, zero = self._logits["quantization"]
        raw = self._interpreter.get_tensor(self._logits["index"])[0]
        labels = self._interpreter.get_tensor(self._output)[0]
        if not (raw.argmax(axis=-1) == labels.reshape(SIDE, SIDE)).all():
            raise ValueError(f"the argmax of {_LOGITS} is not the output of the network")
        logits = (raw[: size[1], : size[0]].astype(np.float32) - zero) * scale
        return np.dstack([cv2.resize(c, (width, height)) for c in logits.transpose(2, 0, 1)])


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns the probabilities of logits along the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def main() -> None:
    args, (number, count) = _parse()
    network = DeepLab(args.model)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    pictures = sorted((Path(args.data) / "JPEGImages").glob("*.jpg"))[number - 1 :: count]
    for picture in tqdm(pictures, unit="picture", disable=None):
        target = output / f"{picture.stem}.npz"
        if not target.exists():
            image = cv2.imread(str(picture))[:, :, ::-1]
            maps = softmax(network.logits(np.ascontiguousarray(image))).transpose(2, 0, 1)
            with replacing_file(target) as file:
                file.write(encode_probabilities(maps))


def _parse() -> Tuple[argparse.Namespace, Tuple[int, int]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", metavar="MODEL.tflite")
    parser.add_argument("output", metavar="OUTPUT")
    parser.add_argument("--data", default="../shared/data/voc2012_val")
    parser.add_argument("--shard", default="1/1", metavar="I/N")
    args = parser.parse_args()
    number, _, count = args.shard.partition("/")
    return args, (int(number), int(count))


if __name__ == "__main__":
    main()
