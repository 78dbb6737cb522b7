"""Hard attention: pooling by pixels that are sampled, trained by REINFORCE with a baseline."""

from typing import NamedTuple

import torch
from torch import nn

from ..argument_checks import check_range


class HardAttentionOutput(NamedTuple):
    """Result of :class:`HardAttention` for n groups.

    Attributes:
        pooled: (n, C) mean features of the chosen pixels.
        pixels: (n, S) int64 indices of these pixels.
        log_probability: (n,) logarithm of the probability of this choice.
        entropy: (n,) entropy of the distribution over the pixels of the group, in nats.
    """

    pooled: torch.Tensor
    pixels: torch.Tensor
    log_probability: torch.Tensor
    entropy: torch.Tensor


class HardAttention(nn.Module):
    """Pools the features of groups of pixels by a few pixels that it chooses.

    The probability of a pixel is its weight in the group times the exponential of its score, the
    product of its features with a learned query. Soft attention, ``MODEL.RPE.GROUP_POOLING
    attention``, averages all pixels with these probabilities. In training, hard attention samples
    pixels, so the gradient of the query is estimated by REINFORCE with a moving average of the loss
    as the baseline (Xu et al., "Show, Attend and Tell", ICML 2015, section 4.1; Williams, Machine
    Learning 1992). In evaluation mode it takes the most probable pixels.

    The paper also replaces half of the samples by their expectation, which biases the gradient.
    This is left out.
    """

    def __init__(
        self,
        feature_dim: int,
        num_samples: int = 1,
        use_baseline: bool = True,
        momentum: float = 0.9,
        entropy_weight: float = 0.002,
    ):
        """
        Args:
            feature_dim: C, the number of channels of the features.
            num_samples: S, the number of pixels of a group that are sampled, with replacement.
            use_baseline: subtract the mean loss of earlier batches from the loss. The expectation
                of the gradient is the same with and without, but its variance is not.
            momentum: share of the earlier batches when the average is updated, in 0-1.
            entropy_weight: weight of the entropy, which is rewarded so that no pixel is excluded
                early; the value of the paper's released code.

        Raises:
            ValueError: An argument is out of range.
        """
        super().__init__()
        check_range("feature_dim", feature_dim, 1)
        check_range("num_samples", num_samples, 1)
        check_range("momentum", momentum, 0, 1 - 1e-6)
        check_range("entropy_weight", entropy_weight, 0)
        self.num_samples = num_samples
        self.use_baseline = use_baseline
        self.momentum = momentum
        self.entropy_weight = entropy_weight
        self.query = nn.Linear(feature_dim, 1, bias=False)
        self.register_buffer("loss_average", torch.zeros(()))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    def forward(self, features: torch.Tensor, weights: torch.Tensor) -> HardAttentionOutput:
        """
        Args:
            features: (P, C) features of the pixels of an image.
            weights: (n, P) soft masks of the groups, in 0-1, without gradients. A group without a
                pixel is treated as if it had all pixels.
        """
        log_probabilities = self.log_probabilities(features, weights)  # (n, P)
        probabilities = log_probabilities.exp()
        if self.training:
            pixels = torch.multinomial(probabilities, self.num_samples, replacement=True)
        else:
            pixels = probabilities.topk(min(self.num_samples, len(features))).indices
        # In evaluation mode, a group can have fewer pixels than are chosen.
        inside = probabilities.gather(1, pixels) > 0  # (n, S)
        share = inside / inside.sum(dim=1, keepdim=True)
        # Pixels with a probability of 0 have a logarithm of -inf, and no part in the sums.
        finite = log_probabilities.clamp(min=torch.finfo(log_probabilities.dtype).min)
        return HardAttentionOutput(
            pooled=(share[:, :, None] * features[pixels]).sum(dim=1),
            pixels=pixels,
            log_probability=(inside * finite.gather(1, pixels)).sum(dim=1),
            entropy=-(probabilities * finite).sum(dim=1),
        )

    def log_probabilities(self, features: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Returns the logarithms (n, P) of the probabilities of the pixels in each group."""
        scores = self.query(features).squeeze(1) * features.shape[1] ** -0.5  # (P,)
        weights = weights.detach()
        weights = weights + (weights.amax(dim=1, keepdim=True) <= 0).to(weights)
        return (scores + weights.log()).log_softmax(dim=1)

    def loss(self, losses: torch.Tensor, output: HardAttentionOutput) -> torch.Tensor:
        """Adds the estimated gradient of the query to the mean loss of groups.

        In training mode, the baseline is updated afterwards. It comes from earlier batches alone,
        so that it is independent of the samples, and the estimate is unbiased.

        Args:
            losses: (n,) loss of each group for the pixels that were sampled, such as the
                cross-entropy of its class.
            output: the result for the same groups.

        Returns:
            A 0-d tensor whose value is the mean of ``losses`` minus the weighted mean entropy, and
            0 for n = 0. The expectation of its gradient over the samples is the gradient of the
            expectation of its value.
        """
        if len(losses) == 0:
            return losses.sum() + output.log_probability.sum()
        observed = losses.detach()
        advantage = observed - self.baseline if self.use_baseline else observed
        log_probability = output.log_probability
        # Its value is 0.
        score_term = advantage * (log_probability - log_probability.detach())
        if self.training:
            mean = observed.mean().to(self.loss_average)
            self.loss_average.lerp_(mean, 1 - self.momentum)
            self.num_updates += 1
        return (losses + score_term - self.entropy_weight * output.entropy).mean()

    @property
    def baseline(self) -> torch.Tensor:
        """The moving average of the losses of all batches so far; 0 before the first one."""
        # The average starts at 0, which counts less and less.
        seen = 1 - self.momentum ** self.num_updates.clamp(min=1)
        return self.loss_average / seen
