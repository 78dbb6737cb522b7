"""Logging scores and losses to Weights & Biases."""

from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage

from rpe_d2.utils.files import replacing_file


class WandbWriter(EventWriter):
    """Sends scores and losses to a run of ``wandb``. A resumed training continues its run."""

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: the configuration, which is sent too. ``WANDB_PROJECT`` names the project.

        Raises:
            ValueError: ``wandb`` is not installed.
        """
        try:
            import wandb
        except ImportError as error:
            raise ValueError(
                f"WANDB_PROJECT is {cfg.WANDB_PROJECT!r}, which needs wandb: pip install wandb"
            ) from error
        identity = Path(cfg.OUTPUT_DIR) / "wandb_run"
        self._run = wandb.init(
            project=cfg.WANDB_PROJECT,
            name=Path(cfg.OUTPUT_DIR).name,
            dir=cfg.OUTPUT_DIR,
            id=identity.read_text().strip() if identity.exists() else None,
            resume="allow",
            config=dict(cfg),
        )
        with replacing_file(identity) as file:
            file.write(self._run.id.encode())
        self._last = -1

    def write(self) -> None:
        storage = get_event_storage()
        smoothed = storage.latest_with_smoothing_hint(20)
        new = {name: value for name, (value, step) in smoothed.items() if step > self._last}
        if new:
            self._last = max(step for _, step in smoothed.values())
            self._run.log(new, step=self._last)

    def close(self) -> None:
        self._run.finish()
