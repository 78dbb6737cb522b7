"""Peak memory of inference on large images, in processes of their own."""

import pytest

from tests.reference.memory import peak_bytes

GROUPING = """
from torch.nn import functional as F
from rpe_d2.modeling.embedding import EmbeddingMaps, MeanShiftGrouping, MeanShiftLayer
from rpe_d2.modeling.embedding.head import cell_centers

torch.manual_seed(0)
torch.set_num_threads(1)
size = 256, 256
maps = EmbeddingMaps(
    F.normalize(torch.randn(1, 8, *size), dim=1),
    torch.tensor([10.0, -10.0]).view(1, 2, 1, 1).expand(1, 2, *size),
    cell_centers(size, 2, torch.device("cpu"))[None],
    torch.zeros(1, 1, *size),
    torch.zeros(1, 1, *size),
    2,
).image(0, (512, 512))
grouping = MeanShiftGrouping(MeanShiftLayer(max_keys=2048), min_area=0)
"""
GROUPED = """
groups = grouping(maps)
assert len(groups) == 500, len(groups)
assert groups.class_probabilities.min() > 0.99
"""

QUICKSTART = """
import sys
from detectron2.modeling import build_model
from rpe_d2.engine.setup import read_config

torch.manual_seed(0)
cfg = read_config("configs/quickstart/rpe_shapes.yaml", ["MODEL.DEVICE", "cpu"])
model = build_model(cfg).eval()
{weights}
image = torch.randint(0, 255, (3, 3000, 4000), dtype=torch.uint8)
"""
INFERENCE = """
output = model([{"image": image, "height": 3000, "width": 4000}])[0]
assert len(output["instances"]) == cfg.TEST.DETECTIONS_PER_IMAGE
before = 0  # the process as a whole
"""
# Every pixel is foreground and votes for its own place, so that the groups are as many as the keys.
ALL_FOREGROUND = """
model.embedding_head.classifier[1].bias.data[-1] = -50
model.embedding_head.voter[1].weight.data.zero_()
model.embedding_head.voter[1].bias.data.zero_()
"""


def test_memory_of_grouping_does_not_grow_with_pixels_times_modes():
    """Memberships of 65,536 cells in 2,048 modes would take 0.5 GB a copy."""
    assert peak_bytes(GROUPING, GROUPED) < 0.8e9


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["", ALL_FOREGROUND], ids=["random", "all foreground"])
def test_memory_of_the_quickstart_on_12_megapixels_is_bounded(weights):
    setup = QUICKSTART.format(weights=weights)
    assert peak_bytes(setup, INFERENCE, timeout=3000) <= 2e9 + (60 + 50) * 12e6
