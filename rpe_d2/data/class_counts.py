"""Numbers of pixels of each class in the label maps of registered data sets."""

import contextlib
from typing import Sequence

import numpy as np
from detectron2.data import DatasetCatalog

from rpe_d2.utils.label_maps import read_class_indices
from rpe_d2.utils.readable import UnreadableImage

__all__ = ["count_class_pixels"]

_MOST_MAPS = 5000  # of a data set; reading them takes half a minute


def count_class_pixels(dataset_names: Sequence[str], num_classes: int) -> np.ndarray:
    """Counts the pixels of each class in semantic data sets.

    Of larger data sets, 5000 maps are read, at equal distances. Maps that cannot be read are left
    out.

    Args:
        dataset_names: names of registered data sets with semantic label maps.
        num_classes: K. Larger labels, such as that of ignored pixels, are not counted.

    Returns:
        (K,) int64.

    Raises:
        ValueError: A data set has no label maps, or no labeled pixel is found.
    """
    counts = np.zeros(num_classes, np.int64)
    for name in dataset_names:
        records = DatasetCatalog.get(name)
        for record in records[:: max(1, -(-len(records) // _MOST_MAPS))]:
            if "sem_seg_file_name" not in record:
                raise ValueError(
                    f"{name} has no semantic label maps, from which the frequencies of the "
                    "classes are taken"
                )
            with contextlib.suppress(UnreadableImage):
                labels = read_class_indices(record["sem_seg_file_name"])
                labels = labels[(labels >= 0) & (labels < num_classes)]
                counts += np.bincount(labels.ravel(), minlength=num_classes)
    if not counts.any():
        raise ValueError(
            f"the label maps of {', '.join(dataset_names)} have no pixels of the {num_classes} "
            "classes; allowed: at least one"
        )
    return counts
