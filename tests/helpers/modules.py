"""Comparison of modules."""

from torch import nn


def assert_same_state_dict(module: nn.Module, other: nn.Module) -> None:
    """Checks that two modules have parameters and buffers of the same names and shapes."""
    shapes = [
        {name: tuple(value.shape) for name, value in m.state_dict().items()}
        for m in (module, other)
    ]
    assert shapes[0] == shapes[1]
