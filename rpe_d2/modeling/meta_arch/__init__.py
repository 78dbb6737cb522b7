from .pixel_embedding_net import PixelEmbeddingNet

__all__ = ["PixelEmbeddingNet"]
