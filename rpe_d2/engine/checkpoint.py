"""Safe checkpoints: complete files, no code from pickles, and an error if weights do not fit."""

import hashlib
import re
from pathlib import Path
from typing import Any, BinaryIO, Dict, List, Optional

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from safetensors.torch import load_file
from torch import nn

from rpe_d2.utils.files import TEMPORARY, replacing_file
from rpe_d2.utils.image_files import check_is_file
from rpe_d2.utils.safe_loading import load_arrays

__all__ = ["ModelCheckpointer", "UnreadableCheckpoint"]

# Larger weights are those of a damaged file or a diverged training. Their results would be NaN.
_LARGEST_WEIGHT = 1e15
AVERAGED = "ema"  # the key of the averaged weights in a checkpoint


class UnreadableCheckpoint(ValueError):
    """A file is not a checkpoint, or is incomplete. The message is one line that names the file."""


class ModelCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with safe saving, loading and resuming.

    * A file is written under a temporary name, synced and renamed, so that a file with its final
      name is complete.
    * Each ``NAME.pth`` has a checksum file ``NAME.pth.sha256``, which loading verifies.
    * Loading does not run code from the file, and rejects infinite and NaN weights. Files of the
      kind safetensors are read, too; weights of 16 bits become those of the model.
    * Resuming skips unreadable checkpoints with a warning and uses the newest readable one.
    * Weights of another architecture are rejected. Detectron2 logs the missing ones and continues
      with random values.
    * A model that does not resume training gets the averaged weights if a checkpoint has them.
    """

    def __init__(self, model: nn.Module, save_dir: str = "", *, complete: bool, **checkpointables):
        """
        Args:
            model, save_dir, checkpointables: as in Detectron2.
            complete: whether a file must contain every tensor of the model, as for inference.
                Otherwise one tensor is enough, as when training starts from the weights of a
                backbone.
        """
        super().__init__(model, save_dir, **checkpointables)
        self.complete = complete
        self.last_saved = ""  # the name of the last checkpoint that this object has written
        self._path = ""
        self._resuming = False

    def save(self, name: str, *, is_last: bool = True, **kwargs: Any) -> None:
        """Writes ``NAME.pth`` completely or not at all.

        Args:
            name: the name of the file without its suffix.
            is_last: whether a resumed run continues from this checkpoint.
            kwargs: additional entries of the checkpoint.

        Raises:
            OSError: The file cannot be written. Existing files stay as they were.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update({key: item.state_dict() for key, item in self.checkpointables.items()})
        data.update(kwargs)
        path = Path(self.save_dir) / f"{name}.pth"
        self.logger.info("Saving checkpoint to %s", path)
        try:
            checksum = checksum_path(path)
            with replacing_file(path) as file:
                hashing = _HashingFile(file)
                torch.save(data, hashing)
                checksum.unlink(missing_ok=True)  # that of the file which is about to be replaced
            with replacing_file(checksum) as file:
                file.write(f"{hashing.hexdigest()}  {path.name}\n".encode())
            if is_last:
                self.tag_last_checkpoint(path.name)
                self.last_saved = name
        except (OSError, RuntimeError) as error:
            # torch hides the system's reason for a failed write behind a RuntimeError of its own.
            reason = error.__context__ if isinstance(error.__context__, OSError) else error
            last = self.get_checkpoint_file() if self.has_checkpoint() else "none"
            raise OSError(
                f"checkpoint {path} could not be written ({one_line_reason(reason)}); "
                f"the last good one: {last}"
            ) from error

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Records the name of the last checkpoint in a file that is written atomically."""
        with replacing_file(Path(self.save_dir) / "last_checkpoint") as file:
            file.write(last_filename_basename.encode())

    def get_checkpoint_file(self) -> str:
        """Returns the path of the checkpoint tagged as last, "" where the tag cannot be read."""
        try:
            return super().get_checkpoint_file()
        except ValueError:  # no text
            self.logger.warning("%s: last_checkpoint is not a text file", self.save_dir)
            return ""

    def resume_or_load(self, path: str, *, resume: bool = True) -> Dict[str, Any]:
        """Resumes from the newest checkpoint that can be read, or loads weights from a path.

        The main process chooses the checkpoint that all processes load.

        Raises:
            ValueError: No checkpoint in the folder can be read, or one does not fit the model.
        """
        if not comm.all_gather(resume and self.has_checkpoint())[0]:
            return self.load(path, checkpointables=[])
        loaded: Dict[str, Any] = {}
        chosen, unreadable = "", []
        if comm.is_main_process():
            # An evaluation removes nothing, because a training run may be writing at the same time.
            if not self.complete:
                for leftover in Path(self.save_dir).glob(f"*{TEMPORARY}"):  # from a killed process
                    leftover.unlink(missing_ok=True)
            for candidate in self._newest_first():
                try:
                    if not Path(candidate).is_file():
                        raise UnreadableCheckpoint(f"weights {candidate}: no such file")
                    loaded = self.load(candidate)
                    chosen = candidate
                    break
                except UnreadableCheckpoint as error:
                    unreadable.append(candidate)
                    self.logger.warning("%s; trying the previous one", error)
        chosen, unreadable = comm.all_gather((chosen, unreadable))[0]
        if not chosen:
            raise ValueError(
                f"OUTPUT_DIR {self.save_dir}: no checkpoint can be read: {', '.join(unreadable)}"
            )
        return loaded if comm.is_main_process() else self.load(chosen)

    def _newest_first(self) -> List[str]:
        """Returns the paths of checkpoints: the one tagged as last, then the others by iteration.

        File times are not used, because copying a folder changes them.
        """
        last = self.get_checkpoint_file()
        paths = [
            path
            for path in Path(self.save_dir).glob("model_*.pth")
            if re.fullmatch(r"model_(\d+|final)\.pth", path.name)
        ]
        paths.sort(key=_iteration, reverse=True)
        tagged = [last] if last else []
        return [*tagged, *(str(path) for path in paths if path != Path(last))]

    def load(self, path: str, checkpointables: Optional[List[str]] = None) -> Dict[str, Any]:
        """Loads a checkpoint and checks that its weights fit the model.

        Raises:
            UnreadableCheckpoint: The file is not a checkpoint.
            ValueError: The weights do not fit the model.
        """
        self._path = path
        self._resuming = checkpointables is None and "trainer" in self.checkpointables
        try:
            return super().load(path, checkpointables)
        finally:
            self._parsed_url_during_load = None  # left set after an error, it breaks later calls

    def _load_file(self, filename: str) -> Any:
        try:
            check_checksum(Path(filename))
            if filename.endswith(".safetensors"):
                return {"model": load_file(filename)}
            if not filename.endswith(".pkl"):
                return super()._load_file(filename)
            with open(filename, "rb") as file:
                content = load_arrays(file)
            if "model" in content and "__author__" in content:
                return content
            # Caffe2 stores the weights of detectors under "blobs", those of classifiers directly.
            blobs = content.get("blobs", content)
            blobs = {k: v for k, v in blobs.items() if not k.endswith("_momentum")}
            return {"model": blobs, "__author__": "Caffe2", "matching_heuristics": True}
        except UnreadableCheckpoint:
            raise
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not self._resuming:
                raise
            raise UnreadableCheckpoint(f"weights {self._path}: {one_line_reason(error)}") from error
        except Exception as error:  # unpickling may raise any error
            raise UnreadableCheckpoint(
                f"weights {self._path}: not a checkpoint ({one_line_reason(error)})"
            ) from error

    def _torch_load(self, filename: str) -> Any:
        # Only tensors and plain types: other pickles can run code.
        return torch.load(filename, map_location="cpu", weights_only=True)

    def _load_model(self, checkpoint: Any):
        self._check_tensors("model", checkpoint.get("model") or None)
        averaged = checkpoint.get(AVERAGED)
        if averaged and not self._resuming:
            self._check_tensors(AVERAGED, averaged)
            self.logger.info("Loading the averaged weights of %s", self._path)
            checkpoint["model"] = averaged_model(averaged)
        self._check_numbers(checkpoint["model"])
        # Older files lack these counters, which torch does not need.
        names = [n for n in self.model.state_dict() if not n.endswith("num_batches_tracked")]
        incompatible = super()._load_model(checkpoint)
        reshaped = {name for name, _, _ in incompatible.incorrect_shapes}
        missing = sorted(reshaped.union(incompatible.missing_keys))
        if missing and (self.complete or self._resuming or len(missing) >= len(names)):
            name = missing[0]
            shapes = [
                f" has shape {tuple(file_shape)} in the file and {tuple(shape)} in the model"
                for key, file_shape, shape in incompatible.incorrect_shapes
                if key == name
            ]
            raise ValueError(
                f"weights {self._path} do not belong to this model: {len(missing)} of its "
                f"{len(names)} tensors do not fit, first {name}"
                f"{shapes[0] if shapes else ', which is missing'}; "
                "give the configuration that they were trained with"
            )
        return incompatible

    def _check_tensors(self, key: str, weights: Any) -> None:
        """
        Raises:
            UnreadableCheckpoint: The weights are anything other than arrays of numbers by name.
        """
        if not isinstance(weights, dict):
            raise UnreadableCheckpoint(
                f"weights {self._path}: not a checkpoint (no tensors under {key!r})"
            )
        for name, value in weights.items():
            if isinstance(name, str) and _is_plain(value):
                continue
            raise UnreadableCheckpoint(
                f"weights {self._path}: not a checkpoint ({name!r} under {key!r} is of type "
                f"{type(value).__name__}; allowed: dense tensors, by name)"
            )

    def _check_numbers(self, weights: Dict[str, Any]) -> None:
        """
        Raises:
            ValueError: A weight of the model is infinite, NaN, far too large or an integer.
        """
        own = self.model.state_dict()
        for name, value in weights.items():
            if name not in own:
                continue
            value = torch.as_tensor(value)
            if own[name].is_floating_point() and not value.is_floating_point():
                raise ValueError(
                    f"weights {self._path}: {name} is of {value.dtype}; allowed: floating point"
                )
            if not value.is_floating_point():
                continue
            count = int((~(value.abs() <= _LARGEST_WEIGHT)).sum())  # NaN is not below it
            if count:
                raise ValueError(
                    f"weights {self._path}: {count} of the {value.numel()} numbers of {name} are "
                    f"infinite, NaN or above {_LARGEST_WEIGHT:g}; allowed: finite numbers"
                )


def _is_plain(value: Any) -> bool:
    """Returns whether a value is an array of numbers, or a dense tensor that has values."""
    if isinstance(value, torch.Tensor):
        return value.layout == torch.strided and not value.is_meta
    return isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biuf"


class _HashingFile:
    """A file that computes the SHA-256 of what is written to it."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def checksum_path(path: Path) -> Path:
    """Returns the file with a checkpoint's SHA-256, which has the format of ``sha256sum``."""
    return path.with_name(f"{path.name}.sha256")


def check_checksum(path: Path) -> None:
    """Compares a checkpoint with its checksum, if it has one.

    Raises:
        UnreadableCheckpoint: The content has changed since the checkpoint was written.
    """
    try:
        check_is_file(str(checksum_path(path)))
        target = checksum_path(path).read_text(errors="replace").split()
    except (OSError, ValueError):
        return  # other people's weights have none
    if not target or not re.fullmatch("[0-9a-f]{64}", target[0]):
        return  # no checksum, because the write was interrupted
    with open(path, "rb") as file:
        found = hashlib.sha256()
        while block := file.read(1 << 20):
            found.update(block)
    if found.hexdigest() != target[0]:
        raise UnreadableCheckpoint(
            f"weights {path}: the content does not match its checksum {checksum_path(path).name}"
        )


def _iteration(path: Path) -> int:
    """Returns the iteration after which a checkpoint was written, or -1 if it cannot be read."""
    number = path.stem.removeprefix("model_")
    if number.isdigit():
        return int(number)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)["iteration"]
    except Exception:  # a damaged file may raise any error; loading reports it
        return -1


def averaged_model(state: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    """Extracts the weights of the model from the state of torch's ``AveragedModel``."""
    prefix = "module."
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


def one_line_reason(error: Exception) -> str:
    """Returns an error's message on one line of at most 200 characters; torch's can fill a page."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join((text or type(error).__name__).split())
    return text if len(text) <= 200 else text[:200] + " …"
