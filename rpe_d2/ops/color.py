"""Visualization of embeddings as colors."""

import torch

METHODS = ("random", "pca")


def embedding_to_rgb(x: torch.Tensor, method: str = "random", seed: int = 0) -> torch.Tensor:
    """Projects D-dimensional embeddings to colors and stretches them to the full range.

    ``random`` projects onto three fixed random directions, as in the figures of Kong & Fowlkes,
    CVPR 2018. ``pca`` projects onto the three directions of largest variance in this image. To
    compare several images, concatenate them into one ``x``, so that all are stretched equally.

    Args:
        x: (D, H, W) floating point.
        method: "random" or "pca".
        seed: seed of the random directions.

    Returns:
        (3, H, W) float32 in 0 to 1. If all embeddings are equal, the image is mid-gray.

    Raises:
        ValueError: ``x`` has a wrong shape or dtype, or ``method`` is unknown.
    """
    if x.dim() != 3 or not x.is_floating_point():
        raise ValueError(
            f"x is {x.dtype} of shape {tuple(x.shape)}; allowed: floating point (D, H, W)"
        )
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; allowed: {', '.join(METHODS)}")
    dim = x.shape[0]
    pixels = x.detach().float().flatten(1).T  # (H*W, D)
    if pixels.numel() == 0:
        return x.new_zeros((3, *x.shape[1:]), dtype=torch.float32)
    if (pixels - pixels[0]).abs().max() < 1e-6:
        return torch.full((3, *x.shape[1:]), 0.5, device=x.device)
    if method == "random":
        generator = torch.Generator().manual_seed(seed)
        # Orthonormal directions keep distances between colors close to those of the embeddings.
        directions = torch.linalg.qr(torch.randn(max(dim, 3), 3, generator=generator))[0][:dim]
    else:
        pixels = pixels - pixels.mean(dim=0)
        _, vectors = torch.linalg.eigh((pixels.T @ pixels).cpu())
        directions = vectors.flip(1)[:, :3]
        # The sign of an eigenvector is arbitrary, so its largest entry is made positive.
        largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
        directions = directions * torch.where(largest < 0, -1.0, 1.0)
    colors = pixels @ directions.to(pixels)  # (H*W, 3 or fewer)
    if colors.shape[1] < 3:
        colors = torch.cat([colors, colors.new_zeros(len(colors), 3 - colors.shape[1])], dim=1)
    low, high = colors.min(), colors.max()
    return ((colors - low) / (high - low)).T.reshape(3, *x.shape[1:])
