import numpy as np
import pytest
import torch
from detectron2.evaluation import DatasetEvaluator

pytest.importorskip("pydensecrf", reason="pydensecrf2 is not installed: pip install -e '.[crf]'")

from rpe_d2.evaluation import DenseCRF, RefinedScoresEvaluator  # noqa: E402


@pytest.fixture
def two_halves():
    """Returns an image of a black and a white half, its labels, and probabilities 10 % wrong."""
    picture = np.zeros((20, 30, 3), np.uint8)
    picture[:, 15:] = 255
    rng = np.random.default_rng(0)
    left = np.where(np.arange(30) < 15, 0.7, 0.3) + rng.uniform(-0.35, 0.29, (20, 30))
    probabilities = np.stack([left, 1 - left]).astype(np.float32).clip(0.01, 0.99)
    truth = np.broadcast_to(np.arange(30) >= 15, (20, 30))
    assert (probabilities.argmax(axis=0) == truth).mean() < 0.95
    return picture, truth, probabilities


def test_dense_crf_corrects_noise(two_halves):
    picture, truth, probabilities = two_halves
    refined = DenseCRF()(picture, probabilities)
    assert refined.shape == (2, 20, 30) and np.allclose(refined.sum(axis=0), 1, atol=1e-4)
    assert (refined.argmax(axis=0) == truth).mean() > 0.99


def test_settings_reach_the_crf(two_halves):
    picture, _, probabilities = two_halves
    usual = DenseCRF()(picture, probabilities)
    for changed in ({"iterations": 1}, {"position": 2.0}, {"color": 200.0}, {"weight": 0.0}):
        assert not np.allclose(DenseCRF(**changed)(picture, probabilities), usual), changed


def test_it_refines_the_scores_that_evaluators_get(two_halves):
    picture, truth, probabilities = two_halves

    class Collect(DatasetEvaluator):
        def process(self, inputs, outputs):
            self.outputs = outputs

    evaluator = RefinedScoresEvaluator(DenseCRF(), Collect())
    image = torch.from_numpy(picture).permute(2, 0, 1)
    evaluator.process([{"image": image}], [{"sem_seg": torch.from_numpy(probabilities).log()}])
    (output,) = evaluator.evaluator.outputs
    assert (output["sem_seg"].argmax(0).numpy() == truth).mean() > 0.99
