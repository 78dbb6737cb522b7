"""The registry of dataset mappers, and counts over registered data sets."""

from functools import lru_cache
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper
from fvcore.common.registry import Registry

from .augmentation import additional_augmentations, leading_augmentations, with_own_scale
from .boundary_mapper import BoundaryMapper
from .dataset_mapper import PixelLabelMapper
from .frame_pair_mapper import FramePairMapper
from .image_mapper import ImageMapper
from .patch_mapper import PatchMapper
from .sparse_pixel_mapper import SparsePixelMapper
from .window_crop_mapper import WindowCropMapper

__all__ = ["DATASET_MAPPER_REGISTRY", "build_train_mapper", "most_instances"]

DATASET_MAPPER_REGISTRY = Registry("DATASET_MAPPER")
DATASET_MAPPER_REGISTRY.__doc__ = """
Mappers by the names that ``INPUT.DATASET_MAPPER_NAME`` and declarations of models take.

A registered class is called with ``(cfg, is_train, **changes)``, where ``changes`` replace
arguments that the configuration would give, as ``augmentations``. The mapper turns a dict of a data
set into an input of the model.
"""

DATASET_MAPPER_REGISTRY.register(DatasetMapper)
DATASET_MAPPER_REGISTRY.register(ImageMapper)
DATASET_MAPPER_REGISTRY.register(PixelLabelMapper)
DATASET_MAPPER_REGISTRY.register(BoundaryMapper)
DATASET_MAPPER_REGISTRY.register(PatchMapper)
DATASET_MAPPER_REGISTRY.register(SparsePixelMapper)
DATASET_MAPPER_REGISTRY.register(FramePairMapper)
DATASET_MAPPER_REGISTRY.register(WindowCropMapper)


def build_train_mapper(name: str, cfg: CfgNode, **changes: Any) -> DatasetMapper:
    """Builds a mapper for training; this package's augmentations are added to Detectron2's mapper.

    Args:
        name: a name in ``DATASET_MAPPER_REGISTRY``.
        cfg: the configuration.
        changes: arguments of the mapper that replace the configuration's.

    Raises:
        ValueError: The registry has no such name.
    """
    if name not in DATASET_MAPPER_REGISTRY:
        allowed = ", ".join(sorted(key for key, _ in DATASET_MAPPER_REGISTRY))
        raise ValueError(f"INPUT.DATASET_MAPPER_NAME is {name!r}; allowed: '', {allowed}")
    mapper = DATASET_MAPPER_REGISTRY.get(name)(cfg, is_train=True, **changes)
    if type(mapper) is DatasetMapper and "augmentations" not in changes:
        own = with_own_scale(cfg, mapper.augmentations.augs)
        mapper.augmentations.augs = [
            *leading_augmentations(cfg),
            *own,
            *additional_augmentations(cfg),
        ]
    return mapper


@lru_cache(maxsize=None)
def most_instances(dataset_name: str) -> int:
    """Returns the largest number of instances, without crowds, in an image of a data set."""
    return max(
        (
            sum(1 for annotation in item.get("annotations", ()) if not annotation.get("iscrowd", 0))
            for item in DatasetCatalog.get(dataset_name)
        ),
        default=0,
    )
