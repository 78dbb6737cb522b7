"""The pair loss with a dense N x N matrix of pairs, in float64."""

import torch


def dense_pair_loss(
    embeddings,
    labels,
    margin=0.5,
    form="linear",
    normalization="joint",
    positive_weight=1.0,
    negative_weight=1.0,
    ignore_label=-1,
    positions=None,
    negative_radius=None,
):
    taking_part = [i for i, label in enumerate(labels.tolist()) if label != ignore_label]
    embeddings = embeddings[taking_part].double()
    labels = labels[taking_part].long()
    unit = embeddings / embeddings.norm(dim=1, keepdim=True)
    s = (1 + unit @ unit.T) / 2  # (N, N)
    hinge = torch.where(s > margin, s - margin, torch.zeros_like(s))
    positive_term, negative_term = {
        "linear": (1 - s, hinge),
        "squared_hinge": ((1 - s) ** 2 / 2, hinge**2 / 2),
        "released": ((1 - s**2) / 2, hinge**2 / 2),
    }[form]

    same = labels[:, None] == labels[None, :]
    different = ~same
    if negative_radius is not None:
        positions = positions[taking_part].double()
        offset = positions[:, None] - positions[None, :]  # (N, N, 2)
        different = different & (offset.pow(2).sum(dim=2) <= negative_radius**2)

    group_size = same.sum(dim=1).double()
    weight = 1 / (group_size[:, None] * group_size[None, :])
    same_weight = weight * same
    different_weight = weight * different
    positive = positive_weight * (same_weight * positive_term).sum()
    negative = negative_weight * (different_weight * negative_term).sum()
    if normalization == "joint":
        return (positive + negative) / (same_weight.sum() + different_weight.sum())
    if not different.any():
        return positive / same_weight.sum()
    return positive / same_weight.sum() + negative / different_weight.sum()
