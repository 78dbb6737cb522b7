"""Clustering with plain Python loops, and the agreement of two clusterings."""

from collections import Counter


def leader_clusters(x, threshold, positions=None, max_distance=None):
    """Assigns points to the first cluster whose first point is near; needs separated groups."""
    leaders, labels = [], []
    for i, vector in enumerate(x.tolist()):
        for number, leader in enumerate(leaders):
            close = sum(a * b for a, b in zip(vector, x[leader].tolist())) >= threshold
            if max_distance is not None:
                close = close and (positions[i] - positions[leader]).norm() <= max_distance
            if close:
                labels.append(number)
                break
        else:
            labels.append(len(leaders))
            leaders.append(i)
    return labels


def flood_fill(label_map):
    """Labels 8-connected components of equal, non-negative values in raster order."""
    height, width = len(label_map), len(label_map[0])
    parts = [[-1] * width for _ in range(height)]
    num_parts = 0
    for row in range(height):
        for column in range(width):
            if label_map[row][column] < 0 or parts[row][column] >= 0:
                continue
            waiting = [(row, column)]
            parts[row][column] = num_parts
            while waiting:
                r, c = waiting.pop()
                for down in (-1, 0, 1):
                    for right in (-1, 0, 1):
                        y, x = r + down, c + right
                        if not (0 <= y < height and 0 <= x < width):
                            continue
                        if parts[y][x] < 0 and label_map[y][x] == label_map[r][c]:
                            parts[y][x] = num_parts
                            waiting.append((y, x))
            num_parts += 1
    return parts


def adjusted_rand_index(first, second):
    """Computes the index of Hubert & Arabie, 1985: 1 for equal partitions, about 0 by chance."""

    def pairs(counts):
        return sum(n * (n - 1) / 2 for n in counts)

    first, second = list(first), list(second)
    both = pairs(Counter(zip(first, second)).values())
    in_first, in_second = pairs(Counter(first).values()), pairs(Counter(second).values())
    expected = in_first * in_second / max(pairs([len(first)]), 1)
    largest = (in_first + in_second) / 2
    return 1.0 if largest == expected else (both - expected) / (largest - expected)
