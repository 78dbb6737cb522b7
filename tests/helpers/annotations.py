"""Files of annotators' contours in the format of BSDS500."""

from pathlib import Path
from typing import Sequence

import numpy as np
from scipy.io import savemat


def save_annotations(path: Path, annotations: Sequence[np.ndarray]) -> str:
    """Writes contours (H, W), one map per annotator, and returns the path."""
    cells = np.empty((1, len(annotations)), dtype=object)
    for index, annotation in enumerate(annotations):
        cells[0, index] = {
            "Segmentation": np.ones(annotation.shape, np.uint16),
            "Boundaries": np.asarray(annotation, np.uint8),
        }
    savemat(path, {"groundTruth": cells}, do_compression=True)
    return str(path)
