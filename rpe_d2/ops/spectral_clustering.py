"""Spectral clustering of many points into a known number of clusters, by scikit-learn."""

import importlib.util

import torch

from .ball_clustering import nearest_center

# Points among which the graph is built. It bounds time and memory.
_MAX_POINTS = 512
_NEIGHBORS = 10


def require_scikit_learn(purpose: str) -> None:
    """Raises an ImportError on one line if scikit-learn is not installed.

    Args:
        purpose: what needs it, for the message.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise ImportError(
            f"{purpose} needs scikit-learn, which is not installed: pip install scikit-learn"
        )


@torch.no_grad()
def spectral_labels(x: torch.Tensor, num_clusters: int) -> torch.Tensor:
    """Clusters points by normalized spectral clustering of their graph of nearest neighbors.

    The graph has at most 512 evenly chosen points, and the others join the nearest mean of a
    cluster. The result does not depend on chance.

    Args:
        x: (N, D) floating-point points.
        num_clusters: number of clusters, at least 1.

    Returns:
        (N,) int64 labels below ``num_clusters``, fewer where there are fewer points.

    Raises:
        ImportError: The package scikit-learn is not installed.
        ValueError: The number of clusters is below 1.
    """
    if num_clusters < 1:
        raise ValueError(f"num_clusters is {num_clusters}; allowed: 1 or more")
    count = min(num_clusters, len(x))
    if count <= 1:
        return torch.zeros(len(x), dtype=torch.long, device=x.device)
    require_scikit_learn("spectral clustering")
    import warnings

    from sklearn.cluster import SpectralClustering  # slow to import

    num_points = min(len(x), _MAX_POINTS)
    chosen = torch.arange(num_points, device=x.device) * len(x) // num_points
    points = x[chosen]
    if len(x) <= count:
        return torch.arange(len(x), device=x.device)
    clustering = SpectralClustering(
        min(count, num_points - 1),
        affinity="nearest_neighbors",
        n_neighbors=min(_NEIGHBORS, num_points),
        assign_labels="cluster_qr",
        random_state=0,
    )
    with warnings.catch_warnings():
        # Objects that are far apart are not connected, which is what is wanted.
        warnings.filterwarnings("ignore", "Graph is not fully connected")
        labels = clustering.fit_predict(points.double().cpu().numpy())
    labels = torch.as_tensor(labels, dtype=torch.long, device=x.device)
    sums = points.new_zeros(count, x.shape[1]).index_add_(0, labels, points)
    sizes = torch.bincount(labels, minlength=count)
    present = torch.nonzero(sizes).squeeze(1)
    result = present[nearest_center(x, sums[present] / sizes[present, None])]
    result[chosen] = labels
    return result
