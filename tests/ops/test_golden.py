"""Embeddings released by the authors: 30 images of digits after each of five loops."""

import numpy as np
import pytest
import torch
from scipy.io import loadmat

from rpe_d2.ops.clustering import cluster_embeddings, split_components
from rpe_d2.ops.mean_shift import mean_shift

BANDWIDTH = 0.2  # bandwidth of the release
NUM_IMAGES = 30
# Chosen once for all images. The mean best IoU is .854 to .863 for .95 to .99.
THRESHOLD = 0.98


@pytest.fixture(scope="module")
def golden(real_data):
    path = real_data("rpe_golden") / "main001.mat"
    return loadmat(path, squeeze_me=True, struct_as_record=False)


@pytest.fixture(scope="module")
def loops(golden):
    """Returns five tensors (30, 4096, 3), the embeddings after loops 1 to 5."""
    stored = [
        torch.from_numpy(np.ascontiguousarray(cell)) for cell in golden["predInstanceMaskMat"]
    ]
    return [cell.permute(3, 0, 1, 2).reshape(NUM_IMAGES, -1, 3).float() for cell in stored]


def test_figures_of_the_stored_embeddings(golden, loops):
    """Those of docs/claims.md: no ground truth, one threshold, and no components."""
    ious, count = [], 0
    for i in range(NUM_IMAGES):
        groups = cluster_embeddings(loops[4][i], 0.9).reshape(64, 64).numpy()
        areas = np.bincount(groups.ravel())
        kept = np.flatnonzero(areas >= 16)
        kept = kept[kept != areas.argmax()]  # the largest group is the background
        count += len(kept)
        instances = golden["instanceMaskMat"][:, :, i]
        for digit in np.unique(instances[instances > 0]):
            truth = instances == digit
            masks = [groups == group for group in kept]
            ious.append(max((mask & truth).sum() / (mask | truth).sum() for mask in masks))
    assert (len(ious), count) == (110, 103)
    assert np.mean(ious) == pytest.approx(0.820, abs=5e-4)


@pytest.mark.parametrize("loop", [1, 2, 3, 4])
def test_each_stored_loop_gives_the_next(loops, loop):
    before, after = loops[loop - 1], loops[loop]
    assert (after - before).abs().max() > 0.05  # the loop changes something
    assert (mean_shift(before, BANDWIDTH, 1) - after).abs().max() < 1e-4


def best_ious(parts, instances):
    """Returns the largest IoU of any component with each digit."""
    ious = []
    for digit in np.unique(instances[instances > 0]):  # 0 is background
        truth = instances == digit
        masks = [parts == part for part in np.unique(parts[truth])]
        ious.append(max((mask & truth).sum() / (mask | truth).sum() for mask in masks))
    return ious


def test_decoding_without_ground_truth(golden, loops):
    ious, controls = [], []
    for i in range(NUM_IMAGES):
        instances = golden["instanceMaskMat"][:, :, i]
        groups = cluster_embeddings(loops[4][i], THRESHOLD).reshape(64, 64)
        ious += best_ious(split_components(groups).numpy(), instances)
        foreground = torch.from_numpy((golden["semanticMaskMat"][:, :, i] > 0).astype(np.int64))
        controls += best_ious(split_components(foreground - 1).numpy(), instances)
    assert len(ious) == 110
    print(
        f"mean best IoU {np.mean(ious):.4f}; "
        f"of components of the ground-truth foreground {np.mean(controls):.4f}"
    )
    assert np.mean(ious) >= 0.86
