from .pixel_embedding_net import PixelEmbeddingNet
from .spn_refiner import SPNRefiner

__all__ = ["PixelEmbeddingNet", "SPNRefiner"]
