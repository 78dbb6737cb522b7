"""Files with class probabilities."""

import io
import zipfile

import numpy as np
import pytest

from rpe_d2.utils.probability_maps import encode_probabilities, read_probabilities
from rpe_d2.utils.readable import UnreadableImage

SIZE = 30, 40


def maps_of(seed: int = 0) -> np.ndarray:
    maps = np.random.default_rng(seed).random((3, *SIZE))
    return maps / maps.sum(axis=0)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("axis", [(), (1,)], ids=["KHW", "nnU-Net"])
def test_floating_point(tmp_path, dtype, axis):
    stored = maps_of().astype(dtype).reshape(3, *axis, *SIZE)
    np.savez(tmp_path / "a.npz", probabilities=stored, other=np.zeros(5))
    read = read_probabilities(tmp_path / "a.npz", SIZE)
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, maps_of(), atol=1e-3)
    np.testing.assert_allclose(read.sum(axis=0), 1, atol=1e-6)


def test_what_is_written_is_read_up_to_rounding(tmp_path):
    (tmp_path / "a.npz").write_bytes(encode_probabilities(maps_of()))
    read = read_probabilities(tmp_path / "a.npz", SIZE)
    np.testing.assert_allclose(read, maps_of(), atol=1 / 255)
    again = np.load(io.BytesIO(encode_probabilities(read)))["probabilities"]
    assert abs(again - 255 * maps_of()).max() <= 1 + 1e-4


@pytest.mark.parametrize(
    "content, message",
    [
        ({"probabilities": np.ones((3, 30, 41), np.uint8)}, r"\(3, 30, 41\)"),
        ({"probabilities": np.ones((0, 30, 40), np.uint8)}, r"\(0, 30, 40\)"),
        ({"probabilities": np.ones((3, 2, 30, 40), np.uint8)}, r"\(3, 2, 30, 40\)"),
        ({"probabilities": np.ones((3, 30, 40), np.int64)}, "int64; allowed: uint8 or floating"),
        ({"probabilities": np.ones((3, 30, 40), np.float32)}, "from 3 to 3; allowed"),
        ({"probabilities": np.full((1, 30, 40), np.nan)}, "from nan"),
        ({"probabilities": np.stack([maps_of()[0] * 0 + 2, maps_of()[0] * 0 - 1])}, "from -1"),
        ({"probabilities": np.zeros((3, 30, 40), np.uint8)}, "from 0 to 0"),
        ({"logits": np.ones((3, 30, 40), np.uint8)}, "an NPZ file with probabilities"),
        ({"probabilities": np.array([{}])}, r"\(1,\)"),
        (None, "not a zip file"),
    ],
)
def test_wrong_files_are_named_in_one_line(tmp_path, content, message):
    path = tmp_path / "a.npz"
    path.write_bytes(b"PK no archive") if content is None else np.savez(path, **content)
    with pytest.raises(UnreadableImage, match=message) as error:
        read_probabilities(path, SIZE)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_huge_array_is_refused_by_its_header(tmp_path):
    header = io.BytesIO()
    description = {"descr": "|u1", "fortran_order": False, "shape": (21, 10**6, 10**6)}
    np.lib.format.write_array_header_1_0(header, description)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("probabilities.npy", header.getvalue())
    with pytest.raises(UnreadableImage, match="1000000"):
        read_probabilities(tmp_path / "a.npz", SIZE)


def test_a_truncated_file(tmp_path):
    content = encode_probabilities(maps_of())
    (tmp_path / "a.npz").write_bytes(content[:-50])
    with pytest.raises(UnreadableImage, match="a.npz"):
        read_probabilities(tmp_path / "a.npz", SIZE)
    damaged = bytearray(content)
    damaged[200:260] = bytes(60)
    (tmp_path / "b.npz").write_bytes(damaged)
    with pytest.raises(UnreadableImage, match="b.npz"):
        read_probabilities(tmp_path / "b.npz", SIZE)
