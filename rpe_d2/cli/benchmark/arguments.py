"""Flags that several benchmarks share."""

import argparse


def add_noise_arguments(parser: argparse.ArgumentParser, side: int) -> None:
    """Declares the flags of :func:`rpe_d2.cli.benchmark.measure.random_input`.

    Args:
        side: default height and width, pixels.
    """
    parser.add_argument(
        "--height", type=int, default=side, help=f"height of the noise images, pixels ({side})"
    )
    parser.add_argument(
        "--width", type=int, default=side, help=f"width of the noise images, pixels ({side})"
    )
    parser.add_argument("--instances", type=int, default=10, help="ellipses per image (10)")


def add_override_argument(parser: argparse.ArgumentParser) -> None:
    """Declares ``--opts``, the overrides of all configurations of a benchmark."""
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY VALUE", help="overrides of all configurations"
    )
