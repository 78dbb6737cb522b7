"""Pictures that cannot be read are named in one line."""

from typing import Any, Callable, Dict, Optional

from detectron2.data.detection_utils import SizeMismatchError

# What PIL and Detectron2 raise for files that are missing, truncated, of another size or no pictures.
UNREADABLE = (OSError, SyntaxError, SizeMismatchError)


class UnreadableImage(ValueError):
    """A picture of a data set cannot be read; the message is one line with its file name."""


class NameUnreadable:
    """A mapper that calls another one and says which picture could not be read."""

    def __init__(self, mapper: Callable[[Dict[str, Any]], Optional[Dict[str, Any]]]):
        """
        Args:
            mapper: from a data set's dict to the model's input.
        """
        self.mapper = mapper

    def __call__(self, dataset_dict: Dict[str, Any]) -> Optional[Dict[str, Any]]:
        """
        Raises:
            UnreadableImage: with the file's name.
        """
        try:
            return self.mapper(dataset_dict)
        except UNREADABLE as error:
            reason = " ".join(str(error).split())
            if dataset_dict["file_name"] not in reason:
                reason = f"{dataset_dict['file_name']}: {reason}"
            raise UnreadableImage(f"{reason} ({type(error).__name__})") from error
