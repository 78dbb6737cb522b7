"""Losses on embeddings of other papers, with loops over instances and pairs of pixels."""

import torch


def instances_of(x, labels):
    """Returns the points of each instance, without those with negative labels."""
    numbers = sorted({label for label in labels.tolist() if label >= 0})
    return [x[[i for i, y in enumerate(labels.tolist()) if y == number]] for number in numbers]


def mean_over_different(terms):
    """Returns the mean of a dict of terms by pairs (a, b), and 0 without any pair."""
    return sum(terms.values()) / len(terms) if terms else 0.0


def discriminative(x, labels, delta_v=0.5, delta_d=1.5):
    """Returns variance, distance and regularization of De Brabandere et al., equations 1 to 3."""
    groups = instances_of(x, labels)
    means = [group.sum(dim=0) / len(group) for group in groups]
    variance, regularization = 0.0, 0.0
    for group, mean in zip(groups, means):
        terms = [torch.relu((point - mean).norm() - delta_v) ** 2 for point in group]
        variance = variance + sum(terms) / len(terms) / len(groups)
        regularization = regularization + mean.norm() / len(groups)
    distance = {
        (a, b): torch.relu(2 * delta_d - (means[a] - means[b]).norm()) ** 2
        for a in range(len(groups))
        for b in range(len(groups))
        if a != b
    }
    return variance, mean_over_different(distance), regularization


def associative(x, labels, sigma=1.0):
    """Returns pull and push of Newell et al. in the form with means."""
    groups = instances_of(x, labels)
    means = [group.sum(dim=0) / len(group) for group in groups]
    pull = 0.0
    for group, mean in zip(groups, means):
        pull = pull + sum(((p - mean) ** 2).sum() for p in group) / len(group) / len(groups)
    push = {
        (a, b): torch.exp(-((means[a] - means[b]) ** 2).sum() / (2 * sigma**2))
        for a in range(len(groups))
        for b in range(len(groups))
        if a != b
    }
    return pull, mean_over_different(push)


def metric_learning(x, labels):
    """Returns the weighted cross-entropy of all ordered pairs of Fathi et al."""
    kept = [(x[i], y) for i, y in enumerate(labels.tolist()) if y >= 0]
    sizes = {y: sum(other == y for _, other in kept) for _, y in kept}
    total, weights = 0.0, 0.0
    for p, y in kept:
        for q, z in kept:
            s = 2 / (1 + torch.exp(((p - q) ** 2).sum()))
            weight = 1 / (sizes[y] * sizes[z])
            total = total - weight * (torch.log(s) if y == z else torch.log(1 - s))
            weights += weight
    return total / weights


def jaccard_loss(wrong, target):
    """Returns 1 - IoU of a target and a prediction that differs from it at the wrong pixels."""
    predicted = [t != (i in wrong) for i, t in enumerate(target)]
    union = sum(p or t for p, t in zip(predicted, target))
    common = sum(p and t for p, t in zip(predicted, target))
    return 1 - common / union if union else 0.0


def lovasz_hinge(logits, target):
    """Returns the Lovász extension of the Jaccard loss at the hinge errors of N pixels.

    See Berman et al. (CVPR 2018), section 2: the pixels become wrong in the order of their errors,
    and the loss is computed from the sets, anew for each pixel.
    """
    target = [bool(t) for t in target]
    errors = [torch.relu(1 - f * (1 if t else -1)) for f, t in zip(logits, target)]
    order = sorted(range(len(errors)), key=lambda i: -float(errors[i]))
    total, wrong = 0.0, set()
    for i in order:
        before = jaccard_loss(wrong, target)
        wrong.add(i)
        total = total + errors[i] * (jaccard_loss(wrong, target) - before)
    return total


def spatial(positions, bandwidths, seeds, labels, foreground_weight=10.0):
    """Returns mask, bandwidth and seed of Neven et al. (CVPR 2019), with learned centers."""
    counted = [i for i, y in enumerate(labels.tolist()) if y >= -1]
    numbers = sorted({y for y in labels.tolist() if y >= 0})
    mask, spread, seed = 0.0, 0.0, 0.0
    for number in numbers:
        own = [i for i in counted if labels[i] == number]
        center = positions[own].sum(dim=0) / len(own)
        mean = bandwidths[own].sum(dim=0) / len(own)
        precision = torch.exp(10 * mean)
        phi = [torch.exp(-(((positions[i] - center) ** 2) * precision).sum()) for i in counted]
        target = [int(labels[i]) == number for i in counted]
        mask = mask + lovasz_hinge([2 * value - 1 for value in phi], target) / len(numbers)
        deviation = ((bandwidths[own] - mean.detach()) ** 2).mean()
        spread = spread + deviation / len(numbers)
        for value, i in zip(phi, counted):
            if i in own:
                seed = seed + foreground_weight * (seeds[i] - value.detach()) ** 2
    for i in counted:
        if labels[i] == -1:
            seed = seed + seeds[i] ** 2
    return mask, spread, seed / len(counted)
