"""An object that shows whether a file was unpickled without a check."""

from pathlib import Path


class Payload:
    """Creates a file when it is unpickled without a check."""

    def __init__(self, path: Path):
        """
        Args:
            path: the file to create.
        """
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)
