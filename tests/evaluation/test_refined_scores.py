"""The evaluator that refines class scores with the image before another one gets them."""

import numpy as np
import pytest
import torch
from detectron2.evaluation import DatasetEvaluator
from PIL import Image

from rpe_d2.evaluation import RefinedScoresEvaluator
from rpe_d2.utils.images import ImageReader


class Collect(DatasetEvaluator):
    def reset(self):
        self.seen = []

    def process(self, inputs, outputs):
        self.seen += outputs

    def evaluate(self):
        return {"sem_seg": {"mIoU": 1.0}}


@pytest.mark.parametrize("image_format", ["RGB", "BGR", "L", "YUV-BT.601"])
def test_the_image_is_rgb_of_the_size_of_the_scores(image_format, tmp_path):
    picture = np.zeros((20, 30, 3), np.uint8)
    picture[:, 15:] = (200, 100, 50) if image_format != "L" else 90
    path = str(tmp_path / "picture.png")
    Image.fromarray(picture.repeat(2, axis=0).repeat(2, axis=1)).save(path)
    image = ImageReader(image_format)(path)
    seen = []

    def refine(rgb, probabilities):
        seen.append(rgb)
        return probabilities[::-1].copy()

    evaluator = RefinedScoresEvaluator(refine, Collect(), image_format)
    evaluator.reset()
    logits = torch.randn(3, 20, 30)
    inputs = {"image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))}
    evaluator.process([inputs], [{"sem_seg": logits, "other": 1}])
    assert seen[0].dtype == np.uint8 and np.abs(seen[0].astype(int) - picture).max() <= 1
    (output,) = evaluator.evaluator.seen
    assert output["other"] == 1
    torch.testing.assert_close(output["sem_seg"], logits.softmax(dim=0).flip(0))
    assert evaluator.evaluate() == {"sem_seg": {"mIoU": 1.0}}
