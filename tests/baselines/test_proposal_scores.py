"""Semantic maps from the crops of proposals."""

import pytest
import torch
from torch import nn

from rpe_d2.baselines.proposal_scores import mean_probabilities, scores_of_proposals


class Brightness(nn.Module):
    """Has the scores v, -v and 1, where v is the brightness of the pixel."""

    def forward(self, items):
        values = [item["image"].mean(dim=0) for item in items]
        return [{"sem_seg": torch.stack([v, -v, torch.ones_like(v)])} for v in values]


IMAGE = torch.arange(1.0, 1 + 24 * 32).view(1, 24, 32).expand(3, -1, -1)
# The crops have a whole number of pixels, and the last two reach beyond the image.
BOXES = torch.tensor([[4.0, 4, 12, 12], [8, 6, 16, 14], [26, 0, 34, 8], [-4, 20, 4, 28]])


@pytest.mark.parametrize("combine", ["max", "sum"])
def test_scores_of_crops_are_combined_at_their_places(combine):
    scores = scores_of_proposals(
        Brightness(), {"image": IMAGE}, BOXES, combine=combine, context=1.0, size=8, batch_size=3
    )
    expected = torch.zeros(3, 24, 32)
    for x0, y0, x1, y1 in BOXES.long().tolist():
        for y in range(max(0, y0), min(24, y1)):
            for x in range(max(0, x0), min(32, x1)):
                value = IMAGE[0, y, x]
                new = torch.stack([value, -value, torch.tensor(1.0)])
                old = expected[:, y, x].clone()
                expected[:, y, x] = torch.maximum(old, new) if combine == "max" else old + new
    torch.testing.assert_close(scores, expected)


def test_crops_have_context_and_one_size():
    sizes = []

    class Recorder(Brightness):
        def forward(self, items):
            sizes.extend(item["image"].shape for item in items)
            return super().forward(items)

    box = torch.tensor([[10.0, 8, 20, 13]])
    scores = scores_of_proposals(Recorder(), {"image": IMAGE}, box, context=1.2, size=16)
    assert sizes == [(3, 16, 16)]
    rows, columns = (scores[2] > 0).nonzero(as_tuple=True)
    # The longer side is 10, the crop 12 x 12 around (15, 10.5).
    assert (columns.min(), columns.max()) == (9, 20)
    assert (rows.min(), rows.max()) == (4, 16)


def test_ensembles_average_probabilities():
    one, other = torch.randn(2, 4, 3, 5)
    expected = (one.exp() / one.exp().sum(0) + other.exp() / other.exp().sum(0)) / 2
    torch.testing.assert_close(mean_probabilities(one, other), expected)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"combine": "mean"}, "combine is 'mean'; allowed: max, sum"),
        ({"boxes": BOXES[:0]}, "the number of boxes is 0; allowed: 1 or more"),
    ],
)
def test_wrong_arguments_are_reported_in_one_line(options, message):
    arguments = {"boxes": BOXES, **options}
    with pytest.raises(ValueError, match=message):
        scores_of_proposals(Brightness(), {"image": IMAGE}, **arguments)
