"""The recurrence of spatial propagation in plain torch.

The Python loop runs over columns. Each step handles all directions, images and rows together.
"""

from typing import List, Tuple

import torch


def forward(x: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    """Propagates x (B, C, H, W) by gates (B, G, 4, K, H, W).

    Returns:
        The result (4, B, C, H, W), float64 like x or float32.
    """
    columns = zip(_columns_of_image(x), _columns_of_gates(gates))
    return _image([_scan(*part) for part in columns], x.shape)


def backward(
    gradient: torch.Tensor, x: torch.Tensor, gates: torch.Tensor, directions: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Computes the gradients of x and gates from that of the result of :func:`forward`."""
    grad_x, grad_gates = [], []
    for columns in zip(
        _columns_of_directions(gradient),
        _columns_of_image(x),
        _columns_of_gates(gates),
        _columns_of_directions(directions),
    ):
        part_x, part_gates = _scan_backward(*columns)
        grad_x.append(part_x)
        grad_gates.append(part_gates)
    grad_x = _image(grad_x, x.shape).sum(dim=0)
    return grad_x.to(x.dtype), _gates(grad_gates, gates.shape).to(gates.dtype)


# ---- Layout. Columns are (T, N, C, L): step, direction and image, channel, position in the column.
# Directions of equal size are scanned together: all four of a square image, otherwise two by two.


def _precise(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _columns_of_directions(maps: torch.Tensor) -> List[torch.Tensor]:
    """Rearranges maps (4, B, C, H, W) to columns."""
    left, right, top, bottom = _precise(maps)
    return _together(
        [left.permute(3, 0, 1, 2), right.flip(-1).permute(3, 0, 1, 2)],
        [top.permute(2, 0, 1, 3), bottom.flip(-2).permute(2, 0, 1, 3)],
    )


def _columns_of_image(x: torch.Tensor) -> List[torch.Tensor]:
    return _columns_of_directions(x.expand(4, *x.shape))


def _columns_of_gates(gates: torch.Tensor) -> List[torch.Tensor]:
    """Rearranges gates (B, G, 4, K, H, W) to (T, N, G, K, L); gates that point outside become 0."""
    left, right, top, bottom = _precise(gates).unbind(2)
    columns = _together(
        [left.permute(4, 0, 1, 2, 3), right.flip(-1).permute(4, 0, 1, 2, 3)],
        [top.permute(3, 0, 1, 2, 4), bottom.flip(-2).permute(3, 0, 1, 2, 4)],
    )
    return [_drop_outside(part) for part in columns]


def _together(across: List[torch.Tensor], down: List[torch.Tensor]) -> List[torch.Tensor]:
    """Concatenates directions (T, B, …) to one tensor (T, 4 B, …) if sizes agree, else to two."""
    groups = [across + down] if across[0].shape == down[0].shape else [across, down]
    joined = []
    for group in groups:
        length, *sizes = group[0].shape
        columns = group[0].new_empty(length, len(group), *sizes)
        for number, part in enumerate(group):  # one copy each, where stack and permute take two
            columns[:, number].copy_(part)
        joined.append(columns.flatten(1, 2))
    return joined


def _drop_outside(gates: torch.Tensor) -> torch.Tensor:
    gates[0] = 0
    if gates.shape[3] == 3:
        gates[..., 0, 0] = 0
        gates[..., 2, -1] = 0
    return gates


def _image(columns: List[torch.Tensor], shape: torch.Size) -> torch.Tensor:
    """Inverts :func:`_columns_of_directions` to (4, B, C, H, W)."""
    across, down = _apart(columns, shape[0])
    across, down = across.permute(1, 2, 3, 4, 0), down.permute(1, 2, 3, 0, 4)
    return torch.stack([across[0], across[1].flip(-1), down[0], down[1].flip(-2)])


def _gates(columns: List[torch.Tensor], shape: torch.Size) -> torch.Tensor:
    """Inverts :func:`_columns_of_gates` to (B, G, 4, K, H, W)."""
    across, down = _apart(columns, shape[0])
    across, down = across.permute(1, 2, 3, 4, 5, 0), down.permute(1, 2, 3, 4, 0, 5)
    return torch.stack([across[0], across[1].flip(-1), down[0], down[1].flip(-2)], dim=2)


def _apart(columns: List[torch.Tensor], batch: int) -> List[torch.Tensor]:
    """Splits columns into (T, 2, B, …) of the horizontal and of the vertical directions."""
    count = 4 // len(columns)
    directions = [part.unflatten(1, (count, batch)) for part in columns]
    return directions if len(directions) == 2 else list(directions[0].split(2, dim=1))


# ---- The recurrence


def _neighbors(padded: torch.Tensor, count: int) -> torch.Tensor:
    """Returns a view (T, N, C, K, L) of the previous, the same and the next neighbors.

    Args:
        padded: (T, N, C, L + 2) columns with a 0 at both ends.
        count: number of neighbors K, 3 or 1 (the same alone).
    """
    *sizes, length = padded.shape
    if count == 1:
        return padded[..., 1:-1].unsqueeze(3)
    return padded.as_strided((*sizes, 3, length - 2), (*padded.stride(), 1))


def _scan(x: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    """Computes h (T, N, C, L) from x (T, N, C, L) and gates (T, N, G, K, L)."""
    padded = torch.nn.functional.pad(x, (1, 1))
    h = padded[..., 1:-1]
    connections = gates.shape[3]
    difference = x.new_empty(*x.shape[1:3], connections, x.shape[3])
    columns = zip(
        x[1:].unbind(0),
        gates[1:].unbind(0),
        _neighbors(padded, connections)[:-1].unbind(0),
        h[1:].unbind(0),
    )
    change = x.new_empty(x.shape[1:])
    for x_t, gates_t, before, h_t in columns:  # h_t still holds x_t
        # Computed as a change of x, which is exactly 0 where x and its neighbors' h are equal.
        torch.sub(before, x_t.unsqueeze(2), out=difference)
        torch.sum(difference.mul_(gates_t), dim=2, out=change)
        h_t.add_(change)
    return h


def _scan_backward(
    gradient: torch.Tensor, x: torch.Tensor, gates: torch.Tensor, h: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor]:
    connections = gates.shape[3]
    padded = torch.nn.functional.pad(gradient, (1, 1))
    delta = padded[..., 1:-1]
    # Gradients flow from each column to the previous, the same and the next neighbor in the column
    # before. Gates that point outside are 0.
    middle = connections // 2
    targets = [
        padded[..., 1 + shift : padded.shape[-1] - 1 + shift]
        for shift in range(-middle, middle + 1)
    ]
    product = x.new_empty(*x.shape[1:3], connections, x.shape[3])
    for t in range(len(x) - 1, 0, -1):
        torch.mul(gates[t], delta[t].unsqueeze(2), out=product)
        for number, target in enumerate(targets):
            target[t - 1].add_(product[:, :, number])
    grad_x = delta * (1 - gates.sum(dim=3))

    before = _neighbors(torch.nn.functional.pad(h, (1, 1)), connections)
    grad_gates = x.new_zeros(*x.shape[:3], connections, x.shape[3])
    torch.sub(before[:-1], x[1:].unsqueeze(3), out=grad_gates[1:]).mul_(delta[1:].unsqueeze(3))
    if gates.shape[2] == 1:
        grad_gates = grad_gates.sum(dim=2, keepdim=True)
    return grad_x, _drop_outside(grad_gates)
