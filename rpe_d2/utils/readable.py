"""Errors about images that cannot be read, which name the file in one line."""

from typing import Any, Callable, Dict, Optional

from detectron2.data.detection_utils import SizeMismatchError
from PIL import Image

from .worker_signals import leave_signals_to_the_trainer

__all__ = ["UNREADABLE", "NameUnreadable", "UnreadableImage", "unreadable_reason"]

# What PIL and Detectron2 raise for a file that is missing, truncated, far too large or not an
# image, or whose size differs from the size in the data set.
UNREADABLE = (OSError, SyntaxError, SizeMismatchError, Image.DecompressionBombError)


class UnreadableImage(ValueError):
    """An image of a data set cannot be read. The message is one line that names its file."""


def unreadable_reason(error: BaseException) -> str:
    """Returns the message of an :class:`UnreadableImage`.

    A data-loading process re-raises its errors with the whole traceback as the message. Its last
    line is "module.Class: message".
    """
    class_name = f"{UnreadableImage.__module__}.{UnreadableImage.__qualname__}"
    return str(error).strip().splitlines()[-1].removeprefix(f"{class_name}: ")


class NameUnreadable:
    """A wrapper of a dataset mapper that names the images which cannot be read."""

    def __init__(self, mapper: Callable[[Dict[str, Any]], Optional[Dict[str, Any]]]):
        """
        Args:
            mapper: turns a dict of a data set into an input of the model.
        """
        self.mapper = mapper

    def __call__(self, dataset_dict: Dict[str, Any]) -> Optional[Dict[str, Any]]:
        """
        Raises:
            UnreadableImage: The image cannot be read.
        """
        leave_signals_to_the_trainer()
        try:
            return self.mapper(dataset_dict)
        except UNREADABLE as error:
            reason = " ".join(str(error).split())
            if dataset_dict["file_name"] not in reason:
                reason = f"{dataset_dict['file_name']}: {reason}"
            raise UnreadableImage(f"{reason} ({type(error).__name__})") from error
