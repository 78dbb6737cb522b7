"""The recurrence of spatial propagation in plain torch: one step a column, all directions, images and rows at once."""

from typing import List, Tuple

import torch


def forward(x: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    """(4, B, C, H, W) from x (B, C, H, W) and gates (B, G, 4, K, H, W), both contiguous."""
    found = [_scan(*columns) for columns in zip(_columns_of_image(x), _columns_of_gates(gates))]
    return _image(found, x.shape).to(x.dtype)


def backward(
    gradient: torch.Tensor, x: torch.Tensor, gates: torch.Tensor, found: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Gradients like x and gates, from that of what was found (4, B, C, H, W)."""
    of_x, of_gates = [], []
    for columns in zip(
        _columns_of_directions(gradient),
        _columns_of_image(x),
        _columns_of_gates(gates),
        _columns_of_directions(found),
    ):
        part_x, part_gates = _scan_backward(*columns)
        of_x.append(part_x)
        of_gates.append(part_gates)
    of_x = _image(of_x, x.shape).sum(dim=0)
    return of_x.to(x.dtype), _gates(of_gates, gates.shape).to(gates.dtype)


# ---- From images to columns (T, N, C, L): step, direction and image, channel, place in the column. Directions of equal
# length are scanned together: all four of a square image, else two by two.


def _precise(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _columns_of_directions(maps: torch.Tensor) -> List[torch.Tensor]:
    """Of (4, B, C, H, W)."""
    maps = _precise(maps)
    across = torch.stack([maps[0], maps[1].flip(-1)]).permute(4, 0, 1, 2, 3)
    down = torch.stack([maps[2], maps[3].flip(-2)]).permute(3, 0, 1, 2, 4)
    return [columns.flatten(1, 2).contiguous() for columns in _together(across, down)]


def _columns_of_image(x: torch.Tensor) -> List[torch.Tensor]:
    return _columns_of_directions(x.expand(4, *x.shape))


def _columns_of_gates(gates: torch.Tensor) -> List[torch.Tensor]:
    """(T, N, G, K, L) of (B, G, 4, K, H, W); gates that point outside are 0."""
    left, right, top, bottom = _precise(gates).unbind(2)
    across = torch.stack([left, right.flip(-1)]).permute(5, 0, 1, 2, 3, 4)
    down = torch.stack([top, bottom.flip(-2)]).permute(4, 0, 1, 2, 3, 5)
    return [
        _drop_outside(columns.flatten(1, 2).contiguous()) for columns in _together(across, down)
    ]


def _together(across: torch.Tensor, down: torch.Tensor) -> List[torch.Tensor]:
    return [torch.cat([across, down], dim=1)] if across.shape == down.shape else [across, down]


def _drop_outside(gates: torch.Tensor) -> torch.Tensor:
    gates[0] = 0
    if gates.shape[3] == 3:
        gates[..., 0, 0] = 0
        gates[..., 2, -1] = 0
    return gates


def _image(columns: List[torch.Tensor], shape: torch.Size) -> torch.Tensor:
    """(4, B, C, H, W) of what :func:`_columns_of_directions` made."""
    across, down = _apart(columns, shape[0])
    across, down = across.permute(1, 2, 3, 4, 0), down.permute(1, 2, 3, 0, 4)
    return torch.stack([across[0], across[1].flip(-1), down[0], down[1].flip(-2)])


def _gates(columns: List[torch.Tensor], shape: torch.Size) -> torch.Tensor:
    """(B, G, 4, K, H, W) of what :func:`_columns_of_gates` made."""
    across, down = _apart(columns, shape[0])
    across, down = across.permute(1, 2, 3, 4, 5, 0), down.permute(1, 2, 3, 4, 0, 5)
    return torch.stack([across[0], across[1].flip(-1), down[0], down[1].flip(-2)], dim=2)


def _apart(columns: List[torch.Tensor], batch: int) -> List[torch.Tensor]:
    """(T, 2, B, …) of the two directions across and of the two down."""
    count = 4 // len(columns)
    directions = [part.unflatten(1, (count, batch)) for part in columns]
    return directions if len(directions) == 2 else list(directions[0].split(2, dim=1))


# ---- The recurrence


def _neighbours(padded: torch.Tensor, count: int) -> torch.Tensor:
    """(T, N, C, K, L) view of columns (T, N, C, L + 2) with a 0 at both ends: the previous, the same and the next."""
    *sizes, length = padded.shape
    if count == 1:
        return padded[..., 1:-1].unsqueeze(3)
    return padded.as_strided((*sizes, 3, length - 2), (*padded.stride(), 1))


def _scan(x: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    """h (T, N, C, L) from x (T, N, C, L) and gates (T, N, G, K, L)."""
    padded = torch.nn.functional.pad(x, (1, 1))
    h = padded[..., 1:-1]
    connections = gates.shape[3]
    difference = x.new_empty(*x.shape[1:3], connections, x.shape[3])
    columns = zip(
        x[1:].unbind(0),
        gates[1:].unbind(0),
        _neighbours(padded, connections)[:-1].unbind(0),
        h[1:].unbind(0),
    )
    change = x.new_empty(x.shape[1:])
    for x_t, gates_t, before, h_t in columns:  # h_t holds x_t so far
        # As a change of x: exactly none where x and all that comes in are equal.
        torch.sub(before, x_t.unsqueeze(2), out=difference)
        torch.sum(difference.mul_(gates_t), dim=2, out=change)
        h_t.add_(change)
    return h


def _scan_backward(
    gradient: torch.Tensor, x: torch.Tensor, gates: torch.Tensor, h: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor]:
    connections = gates.shape[3]
    # What flows back to a pixel from the next column: the gates there that point to it.
    to_pixel = gates
    if connections == 3:
        to_pixel = torch.zeros_like(gates)
        to_pixel[..., 0, 1:] = gates[..., 2, :-1]
        to_pixel[..., 1, :] = gates[..., 1, :]
        to_pixel[..., 2, :-1] = gates[..., 0, 1:]
    padded = torch.nn.functional.pad(gradient, (1, 1))
    delta = padded[..., 1:-1]
    product = x.new_empty(*x.shape[1:3], connections, x.shape[3])
    change = x.new_empty(x.shape[1:])
    columns = zip(
        to_pixel[1:].unbind(0),
        _neighbours(padded, connections)[1:].unbind(0),
        delta[:-1].unbind(0),
    )
    for to_pixel_t, after, delta_t in reversed(list(columns)):
        torch.mul(after, to_pixel_t, out=product)
        torch.sum(product, dim=2, out=change)
        delta_t.add_(change)
    of_x = delta * (1 - gates.sum(dim=3))

    of_gates = torch.zeros_like(gates)
    before = _neighbours(torch.nn.functional.pad(h, (1, 1)), connections)
    for number in range(connections):
        part = delta[1:] * (before[:-1, :, :, number] - x[1:])  # (T - 1, N, C, L)
        of_gates[1:, :, :, number] = part if gates.shape[2] > 1 else part.sum(dim=2, keepdim=True)
    return of_x, _drop_outside(of_gates)
