"""Loading weights: what does not fit a model is an error, not a warning among many lines."""

from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

__all__ = ["ModelCheckpointer"]


class ModelCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer that refuses weights of another architecture.

    Detectron2 logs what is missing and goes on with random values there.
    """

    def __init__(self, model: nn.Module, save_dir: str = "", *, complete: bool, **checkpointables):
        """
        Args:
            complete: every tensor of the model must be in the file with its shape, as for inference; else, as for
                training from a backbone's weights, at least one.
            model, save_dir, checkpointables: as in Detectron2.
        """
        super().__init__(model, save_dir, **checkpointables)
        self.complete = complete
        self._path = ""

    def load(self, path: str, *args, **kwargs) -> dict:
        """As in Detectron2.

        Raises:
            ValueError: the file is no checkpoint, or its weights do not fit the model.
        """
        self._path = path
        try:
            return super().load(path, *args, **kwargs)
        finally:
            self._parsed_url_during_load = None  # or every later call fails

    def _load_file(self, filename: str) -> Any:
        try:
            return super()._load_file(filename)
        except OSError:
            raise
        except Exception as error:  # unpickling something else may raise anything
            raise ValueError(f"weights {self._path}: not a checkpoint ({error})") from error

    def _load_model(self, checkpoint: Any):
        if not isinstance(checkpoint.get("model"), dict) or not checkpoint["model"]:
            raise ValueError(f"weights {self._path}: not a checkpoint (no tensors under 'model')")
        # Older files lack these counters, and torch does without.
        names = [n for n in self.model.state_dict() if not n.endswith("num_batches_tracked")]
        incompatible = super()._load_model(checkpoint)
        reshaped = {name for name, _, _ in incompatible.incorrect_shapes}
        missing = sorted(reshaped.union(incompatible.missing_keys))
        if missing and (self.complete or len(missing) >= len(names)):
            name = missing[0]
            shapes = [
                f" has shape {tuple(found)} there and {tuple(needed)} in the model"
                for key, found, needed in incompatible.incorrect_shapes
                if key == name
            ]
            raise ValueError(
                f"weights {self._path} are not of this model: {len(missing)} of its {len(names)} tensors do not fit, "
                f"first {name}{shapes[0] if shapes else ', which is not there'}; "
                "give the configuration that they were trained with"
            )
        return incompatible
