"""Greedy choice of the pixels from which masks of instances grow."""

import torch

from .metric_learning_loss import similarity
from .spatial_loss import spatial_kernel

# Seeds that are tried for each one that is kept at most. It bounds the number of steps.
_TRIALS = 4


@torch.no_grad()
def diverse_seeds(
    embeddings: torch.Tensor,
    seediness: torch.Tensor,
    max_seeds: int,
    *,
    diversity: float = 0.3,
    min_score: float = 0.2,
) -> torch.Tensor:
    """Chooses seeds that have a high score and are different from each other.

    See Fathi et al. (arXiv 1703.10277), section 3. The next seed maximizes ``log S + alpha log
    D``, where S is the seediness of a pixel, and D is 1 minus its largest similarity with a seed
    chosen before, or 1 for the first seed. The paper chooses a fixed number of seeds. Here,
    choosing also stops where the largest ``S D^alpha`` is too small.

    Every seed takes O(N D) time, where N counts the pixels with a seediness of ``min_score``.

    Args:
        embeddings: (N, D) floating point.
        seediness: (N,) scores in 0 to 1.
        max_seeds: largest number of seeds.
        diversity: alpha, >= 0.
        min_score: smallest ``S D^alpha`` of a seed.

    Returns:
        (R,) int64 indices of the seeds in the order of their choice.
    """
    seeds = []
    candidates = torch.nonzero(seediness >= min_score).squeeze(1)
    embeddings, seediness = embeddings[candidates], seediness[candidates]
    score = seediness.clone()
    while len(score) and len(seeds) < max_seeds:
        best = int(score.argmax())
        if not float(score[best]) >= min_score:
            break
        seeds.append(best)
        square = (embeddings - embeddings[best]).square().sum(dim=1)
        apart = (1 - similarity(square)).clamp(min=0) ** diversity
        # The power of the smallest difference is the smallest power.
        score = torch.minimum(score, seediness * apart)
        score[best] = 0
    return candidates[torch.tensor(seeds, dtype=torch.long, device=candidates.device)]


@torch.no_grad()
def spatial_seeds(
    positions: torch.Tensor,
    bandwidths: torch.Tensor,
    seediness: torch.Tensor,
    max_seeds: int,
    *,
    min_seediness: float = 0.5,
    threshold: float = 0.5,
    min_pixels: float = 1,
) -> torch.Tensor:
    """Chooses seeds whose masks cover the pixels with high seed scores.

    See Neven et al. (CVPR 2019), section 3. The pixel with the highest seed score is a seed. All
    pixels whose kernel with it exceeds the threshold are its mask, and are no seeds any more. As in
    the authors' release, a seed is kept only if its mask is large enough and more than half of it
    was not covered before.

    Every seed takes O(N) time, and at most four times ``max_seeds`` are tried.

    Args:
        positions: (N, 2) positions that the pixels point to.
        bandwidths: (N, 1) or (N, 2), see :func:`rpe_d2.ops.spatial_loss.spatial_kernel`.
        seediness: (N,) seed scores in 0 to 1.
        max_seeds: largest number of seeds.
        min_seediness: seeds have a higher score.
        threshold: pixels with a higher kernel value are in the mask of a seed.
        min_pixels: smallest mask of a seed.

    Returns:
        (R,) int64 indices of the seeds in the order of their choice.
    """
    seeds = []
    candidates = torch.nonzero(seediness > min_seediness).squeeze(1)
    positions, bandwidths = positions[candidates], bandwidths[candidates]
    free = seediness[candidates].clone()  # 0 for pixels in a mask
    for _ in range(_TRIALS * max_seeds):
        if len(free) == 0 or len(seeds) == max_seeds:
            break
        best = int(free.argmax())
        if not float(free[best]) > 0:
            break
        mask = spatial_kernel(positions, positions[best], bandwidths[best]) > threshold
        uncovered = int((mask & (free > 0)).sum())
        size = int(mask.sum())
        if size >= min_pixels and 2 * uncovered > size:
            seeds.append(best)
        free[mask] = 0
        free[best] = 0
    return candidates[torch.tensor(seeds, dtype=torch.long, device=candidates.device)]
