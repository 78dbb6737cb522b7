"""Meta-architectures."""

from .boundary_embedding_net import BoundaryEmbeddingNet
from .label_propagation_net import LabelPropagationNet
from .pixel_embedding_net import PixelEmbeddingNet
from .spn_refiner import SPNRefiner
from .temporal_propagation_net import TemporalPropagationNet

__all__ = [
    "BoundaryEmbeddingNet",
    "LabelPropagationNet",
    "PixelEmbeddingNet",
    "SPNRefiner",
    "TemporalPropagationNet",
]
