"""Panels of embeddings as colors and on the sphere."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch.nn import functional as F

from rpe_d2.visualization import loop_panels
from rpe_d2.visualization.loops import principal_axes


@pytest.mark.parametrize("dim", [1, 2, 3, 16])
def test_principal_axes(dim: int) -> None:
    points = F.normalize(
        torch.randn(50, dim, generator=torch.Generator().manual_seed(0)) + 0.5, dim=1
    )
    axes = principal_axes(points.numpy())
    assert axes.shape == (dim, 3)
    kept = min(dim, 3)
    np.testing.assert_allclose((axes.T @ axes)[:kept, :kept], np.eye(kept), atol=1e-5)
    assert not axes[:, kept:].any()
    along = points.numpy() @ axes
    assert along[:, 0].mean() >= 0
    squares = (along**2).mean(axis=0)
    assert (np.diff(squares) <= 1e-6).all()
    if dim <= 3:  # a rotation keeps all distances
        np.testing.assert_allclose(np.linalg.norm(along, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("has_foreground", [True, False])
def test_panels(has_foreground: bool) -> None:
    """Two objects in an image of 40 x 60, at 20 x 30 in the network with cells of 4 pixels."""
    left, right = torch.eye(4)[:2]
    embeddings = torch.where(torch.arange(8) < 4, left[:, None, None], right[:, None, None]).expand(
        4, 5, 8
    )
    foreground = torch.full((5, 8), has_foreground)
    foreground[0] = False
    labels = np.zeros((40, 60), dtype=int)
    labels[:, 32:] = 1
    spheres, colors = loop_panels([embeddings] * 3, foreground, labels, "ground truth", 4, (20, 30))
    assert [panel.title for panel in colors] == [f"embeddings, loop {k}" for k in range(3)]
    assert [panel.title for panel in spheres] == ["sphere before shifting", "sphere after 2 loops"]
    pictures = []
    for panel in [*spheres, *colors]:
        axes = Figure().add_subplot()
        panel.draw(axes)
        pictures.extend(image.get_array() for image in axes.images)
    assert len(pictures) == 3
    picture = pictures[0]
    rows, columns = picture.shape[:2]
    assert abs(columns / rows - 1.5) < 0.01
    gray = picture[rows // 10, columns // 4]
    assert len(set(gray.tolist())) == 1
    one, other = picture[rows // 2, columns // 4], picture[rows // 2, 3 * columns // 4]
    if has_foreground:
        assert np.abs(one - other).max() > 0.1
        assert (pictures[2] == picture).all()  # equal embeddings have equal colors in every loop
    else:
        assert (picture == gray).all()
