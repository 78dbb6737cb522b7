"""Construction of embedding losses and mean shift that fit an embedding head."""

from typing import Optional, Tuple, Union

from .grouping import ComponentGrouping, MeanShiftGrouping, PixelGrouping
from .head import EmbeddingHead
from .loss import EmbeddingLoss, check_sem_seg_stride
from .mean_shift_layer import MeanShiftLayer
from .methods import MethodLoss

AnyLoss = Union[EmbeddingLoss, MethodLoss]


def fit_to_head(
    head: EmbeddingHead,
    embedding_loss: Optional[AnyLoss],
    mean_shift: Optional[MeanShiftLayer],
    **mean_shift_options,
) -> Tuple[AnyLoss, Optional[MeanShiftLayer]]:
    """Builds the parts that are None, and checks that the others fit the head.

    Args:
        head: the embedding head.
        embedding_loss: the losses. If None, default losses, which include votes if the head
            predicts them.
        mean_shift: the layer. If None, a default layer, which moves votes if the head predicts
            them.
        mean_shift_options: arguments of the default layer.

    Returns:
        The losses and the layer, which is None with a :class:`MethodLoss`.

    Raises:
        ValueError: A part needs predictions that the head does not make.
    """
    if isinstance(embedding_loss, MethodLoss):
        _check_method_loss(head, embedding_loss, mean_shift)
        return embedding_loss, None
    if not head.normalize:
        raise ValueError(
            "embedding_head.normalize is False; allowed with embedding_loss EmbeddingLoss: True"
        )
    has_votes = head.vote_unit is not None
    if embedding_loss is None:
        embedding_loss = EmbeddingLoss(use_votes=has_votes)
    if mean_shift is None:
        mean_shift = MeanShiftLayer(shift_positions=has_votes, **mean_shift_options)
    check_sem_seg_stride(
        "embedding_loss.sem_seg_stride", embedding_loss.sem_seg_stride, "stride", head.stride
    )
    for name, value in (
        ("embedding_loss.use_votes", embedding_loss.use_votes),
        ("mean_shift.shift_positions", mean_shift.shift_positions),
    ):
        if value and not has_votes:
            raise ValueError(f"{name} is True; allowed with embedding_head.vote_unit None: False")
    if mean_shift.relative_bandwidth and head.max_size is None:
        raise ValueError(
            f"mean_shift.relative_bandwidth is {mean_shift.relative_bandwidth}; allowed with "
            "embedding_head.max_size None: 0"
        )
    if (
        embedding_loss.loop_weights
        and len(embedding_loss.loop_weights) != mean_shift.train_loops + 1
    ):
        raise ValueError(
            f"embedding_loss.loop_weights is {embedding_loss.loop_weights}; allowed with "
            f"mean_shift.train_loops {mean_shift.train_loops}: {mean_shift.train_loops + 1} numbers"
        )
    return embedding_loss, mean_shift


def _check_method_loss(
    head: EmbeddingHead, embedding_loss: MethodLoss, mean_shift: Optional[MeanShiftLayer]
) -> None:
    embedding_loss.check_head(head)
    check_sem_seg_stride(
        "embedding_loss.sem_seg_stride", embedding_loss.sem_seg_stride, "stride", head.stride
    )
    if mean_shift is not None:
        raise ValueError(
            f"mean_shift is a {type(mean_shift).__name__}; allowed with embedding_loss "
            f"{type(embedding_loss).__name__}: None"
        )


def default_grouping(embedding_loss: AnyLoss) -> PixelGrouping:
    """Builds the grouping that belongs to a loss, with default arguments."""
    if isinstance(embedding_loss, MethodLoss):
        return embedding_loss.default_grouping()
    return MeanShiftGrouping()


def check_grouping(grouping: PixelGrouping, embedding_loss: AnyLoss) -> None:
    """Raises a ValueError if a grouping does not fit a loss.

    Background may be a group of the grouping only if it is one of the loss, and embeddings of other
    methods are not on a sphere.
    """
    if isinstance(embedding_loss, MethodLoss):
        own = type(embedding_loss.default_grouping())
        if not isinstance(grouping, (own, ComponentGrouping)):
            raise ValueError(
                f"grouping is a {type(grouping).__name__}; allowed with embedding_loss "
                f"{type(embedding_loss).__name__}: {own.__name__}, ComponentGrouping"
            )
    if grouping.background_is_group and not embedding_loss.background_is_group:
        raise ValueError(
            "grouping.background_is_group is True; allowed with embedding_loss.background_is_group "
            "False: False"
        )
