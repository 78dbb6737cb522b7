"""The table of kinds of files in docs/images.md, cell by cell."""

import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import Metadata
from detectron2.modeling import build_model
from PIL import Image

from rpe_d2.cli import demo
from rpe_d2.cli.mask_refiner import MaskRefiner
from rpe_d2.cli.visualize_figures import draw_prediction
from rpe_d2.data import ImageMapper, NameUnreadable, PixelLabelMapper, UnreadableImage
from rpe_d2.inference.predictor import all_planes, build_predictor, find_images
from tests.conftest import ROOT
from tests.helpers.configs import small_cfg_with

TOOLS = ("train", "evaluate", "demo", "visualize", "refine-masks")
HEIGHT, WIDTH = 96, 128
GRAY = np.tile(np.arange(0, 256, 2, dtype=np.uint8), (HEIGHT, 1))  # a ramp
RGB = np.stack([GRAY, GRAY[:, ::-1], GRAY], axis=2)


def table() -> dict:
    """Reads {kind of file: {tool: cell}} from the page."""
    lines = (ROOT / "docs" / "images.md").read_text(encoding="utf-8").splitlines()
    start = lines.index(f"| file | {' | '.join(TOOLS)} |")
    rows = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        kind, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        rows[kind] = dict(zip(TOOLS, cells))
    return rows


TABLE = table()


def save(suffix, array, mode=None, **options):
    def write(path: Path) -> None:
        image = Image.fromarray(array)
        (image.convert(mode) if mode else image).save(path, **options)

    return suffix, write


def save_tiff(array, **options):
    return ".tif", lambda path: tifffile.imwrite(path, array, **options)


def save_bytes(suffix, content):
    return suffix, lambda path: path.write_bytes(content)


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def png_header(width, height):
    def chunk(name, content):
        crc = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def truncated(path: Path) -> None:
    Image.fromarray(RGB).save(path)
    path.write_bytes(path.read_bytes()[:300])


def animated(path: Path) -> None:
    frames = [Image.fromarray(np.roll(GRAY, shift, axis=1)) for shift in (0, 20, 40)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def video(path: Path) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 5, (WIDTH, HEIGHT))
    for _ in range(3):
        writer.write(RGB)
    writer.release()


CONTIGUOUS = {"photometric": "minisblack", "planarconfig": "contig"}
WRITERS = {
    "8-bit gray PNG": save(".png", GRAY),
    "8-bit RGB PNG": save(".png", RGB),
    "JPEG": save(".jpg", RGB),
    "CMYK JPEG": save(".jpg", RGB, "CMYK"),
    "JPEG with EXIF orientation": save(".jpg", RGB, exif=exif(6)),
    "PNG with alpha": save(".png", RGB, "RGBA"),
    "PNG with a palette": save(".png", RGB, "P"),
    "1-bit PNG": save(".png", GRAY, "1"),
    "16-bit gray PNG": save(".png", GRAY.astype(np.uint16) * 16),
    "16-bit RGB PNG": (".png", lambda path: cv2.imwrite(str(path), RGB.astype(np.uint16) * 16)),
    "16-bit gray TIFF": save_tiff(GRAY.astype(np.uint16) * 16),
    "32-bit integer TIFF": save_tiff(GRAY.astype(np.int32) * 1000),
    "floating-point TIFF in 0-1": save_tiff(np.float32(GRAY / 255)),
    "TIFF compressed by LZW": save(".tif", RGB, compression="tiff_lzw"),
    "NumPy file": (".npy", lambda path: np.save(path, RGB)),
    "WebP": save(".webp", RGB),
    "TIFF with 2 channels": save_tiff(RGB[:, :, :2], **CONTIGUOUS),
    "TIFF with 5 channels": save_tiff(np.concatenate([RGB, RGB[:, :, :2]], axis=2), **CONTIGUOUS),
    "TIFF with 3 planes": save_tiff(np.stack([GRAY] * 3), photometric="minisblack"),
    "animated GIF": (".gif", animated),
    "truncated JPEG": (".jpg", truncated),
    "empty file": save_bytes(".png", b""),
    "text": save_bytes(".png", b"This is not a picture.\n"),
    "video": (".mp4", video),
    "folder named as a picture": (".png", Path.mkdir),
    "FIFO": (".png", os.mkfifo),
    "PNG of 60,000 × 60,000 pixels": save_bytes(".png", png_header(60000, 60000)),
}


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    cfg = small_cfg_with("MODEL: {RPE: {NUM_CLASSES: 1}}", "INPUT: {MIN_SIZE_TEST: 0, FORMAT: RGB}")
    torch.manual_seed(0)
    weights = tmp_path_factory.mktemp("model")
    DetectionCheckpointer(build_model(cfg), str(weights)).save("model")
    cfg.MODEL.WEIGHTS = str(weights / "model.pth")
    predictor = build_predictor(cfg)
    predictor.cfg = cfg
    return predictor


def pictures_of(tool: str, file: str, predictor, output: Path, capsys) -> list:
    """Runs what a tool does with a file, and returns the images (H, W, 3) that it has read.

    Raises:
        ValueError: The tool's one line.
    """
    cfg = predictor.cfg
    if tool in ("train", "evaluate"):
        mapper = (
            PixelLabelMapper(cfg, True, augmentations=[])
            if tool == "train"
            else ImageMapper(cfg, False)
        )
        image = NameUnreadable(mapper)({"file_name": file, "annotations": []})["image"]
        return [image.permute(1, 2, 0).numpy()]
    if tool == "refine-masks":
        item = MaskRefiner(predictor, sparse=False).item(Path(file))
        return [item["image"].permute(1, 2, 0).numpy()]
    files = all_planes([file])
    if tool == "demo":
        painter = demo._Painter(Metadata(thing_classes=["object"]), 0.5)
        drawn = list(demo._run_images(predictor, painter, files, output))
        printed = capsys.readouterr().err
        if "skipped" in printed:
            raise ValueError(printed[printed.index("skipped") :].splitlines()[0])
        return [np.asarray(Image.open(path)) for path, _ in drawn]
    mapper = NameUnreadable(PixelLabelMapper(cfg, True, augmentations=[]))
    images = []
    for name in files:
        mapped = mapper({"file_name": name})
        item = {"file_name": name}
        assert draw_prediction(predictor, item, mapped, Metadata(thing_classes=["object"]), 0.5)
        images.append(mapped["image"].permute(1, 2, 0).numpy())
    return images


def test_the_page_and_the_tests_have_the_same_kinds():
    assert list(TABLE) == list(WRITERS)
    assert {cell for row in TABLE.values() for cell in row.values()} == {
        "works",
        "error",
        "every plane",
    }


@pytest.mark.parametrize("kind", TABLE)
def test_a_row_of_the_table(kind, predictor, tmp_path, capsys):
    suffix, write = WRITERS[kind]
    path = tmp_path / f"picture{suffix}"
    write(path)
    for tool, cell in TABLE[kind].items():
        output = tmp_path / tool
        output.mkdir()
        if cell == "error":
            try:
                pictures_of(tool, str(path), predictor, output, capsys)
            except (ValueError, UnreadableImage) as error:
                raised = error
            else:
                pytest.fail(f"{tool} accepts it")
            message = str(raised)
            assert "picture" in message and "\n" not in message, (tool, message)
            if "channels" in kind or "planes" in kind:
                assert kind.split()[-1] in message, (tool, message)
            continue
        images = pictures_of(tool, str(path), predictor, output, capsys)
        assert len(images) == (3 if cell == "every plane" else 1), tool
        for image in images:
            expected = (WIDTH, HEIGHT) if "EXIF" in kind else (HEIGHT, WIDTH)
            assert image.shape[:2] == expected and image.shape[2] == 3, tool
            # The ramp reaches from black to white, so that nothing was clipped to one value.
            first = image[:, :, 0].astype(float)
            assert first.min() < 30 and first.max() > 220 and first.std() > 50, tool


def test_planes_of_pictures_have_names_of_their_own(predictor, tmp_path, capsys):
    tifffile.imwrite(tmp_path / "stack.tif", np.stack([GRAY] * 3), photometric="minisblack")
    files = all_planes(find_images([str(tmp_path)]))
    painter = demo._Painter(Metadata(thing_classes=["object"]), 0.5)
    drawn = [path.name for path, _ in demo._run_images(predictor, painter, files, tmp_path)]
    assert drawn == ["stack[0].png", "stack[1].png", "stack[2].png"]
    assert all_planes([str(tmp_path / "stack.tif")], plane=1) == [str(tmp_path / "stack.tif")]
