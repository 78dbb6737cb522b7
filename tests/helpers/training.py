"""Runs of train_net on configurations written as YAML."""

from pathlib import Path

from rpe_d2.cli.train_net import main
from tests.conftest import ROOT


def train(output: Path, base: str, text: str) -> int:
    """Trains in this process on the CPU, on two images per batch for two iterations.

    Args:
        output: the output folder. The configuration is written beside it.
        base: a file below ``configs/``.
        text: YAML of the keys that differ from it.

    Returns:
        The exit status of train_net.
    """
    config = output.with_suffix(".yaml")
    config.write_text(f'_BASE_: "{ROOT / "configs" / base}"\n{text}')
    options = "MODEL.DEVICE cpu DATALOADER.NUM_WORKERS 0 SOLVER.MAX_ITER 2 SOLVER.IMS_PER_BATCH 2"
    return main(["--config-file", str(config), *options.split(), "OUTPUT_DIR", str(output)])
