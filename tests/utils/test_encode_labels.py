"""RLE of whole label maps against pycocotools."""

import numpy as np
import pycocotools.mask as mask_util
import pytest

from rpe_d2.utils.label_maps import decode_labels, encode_labels


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint32])
@pytest.mark.parametrize("size", [(1, 1), (7, 1), (1, 9), (20, 31)])
def test_equal_to_pycocotools(size, dtype):
    rng = np.random.default_rng(0)
    for high in (1, 2, 5):
        labels = rng.integers(0, high + 1, size).astype(dtype) * 3
        encoded = encode_labels(labels)
        assert list(encoded) == [n for n in np.unique(labels) if n > 0]
        for label, rle in encoded.items():
            mask = np.asfortranarray(labels == label, dtype=np.uint8)
            expected = mask_util.encode(mask)
            assert rle["counts"] == expected["counts"].decode() and rle["size"] == list(size)


def test_without_objects_or_pixels():
    assert encode_labels(np.zeros((4, 5), int)) == {}
    assert encode_labels(np.zeros((0, 5), int)) == {}
    (full,) = encode_labels(np.full((4, 5), 9)).values()
    assert mask_util.area(full) == 20


def test_decoding_is_the_inverse_and_later_masks_are_in_front():
    rng = np.random.default_rng(0)
    masks = rng.random((5, 20, 31)) < 0.3
    expected = np.zeros((20, 31), int)
    for number, mask in enumerate(masks, start=1):
        expected[mask] = number
    rles = [mask_util.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]
    np.testing.assert_array_equal(decode_labels(rles, (20, 31)), expected)
    again = decode_labels(list(encode_labels(expected).values()), (20, 31))
    np.testing.assert_array_equal(again, np.searchsorted(np.unique(expected), expected))
    assert not decode_labels([], (20, 31)).any()
