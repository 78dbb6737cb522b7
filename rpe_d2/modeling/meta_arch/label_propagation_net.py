"""Training of the refiner of label maps, ``rpe_d2.refine``, on degraded true labels."""

from typing import Any, Dict, List, Tuple

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import BitMasks, Instances
from torch import nn
from torch.nn import functional as F

from rpe_d2.refinement.degradation import degrade_labels
from rpe_d2.refinement.label_geometry import boundary_distance, color_labels
from rpe_d2.refinement.network import (
    ENCODER,
    RefinerNetwork,
    build_refiner_network,
    propagate_labels,
)
from rpe_d2.refinement.proposals import classes_present
from rpe_d2.refinement.refine import LabelRefiner

from ..argument_checks import check_range
from ..backbone.timm_backbone import load_timm_weights
from ..layers import resize_maps, zero_loss
from ..spn import log_probabilities

# Share of the examples whose labels are probabilities, blurred by up to this many pixels.
_SOFT, _BLUR = 0.3, 4.0
_IGNORED = -1


@META_ARCH_REGISTRY.register()
class LabelPropagationNet(nn.Module):
    """Learns to refine label maps of any model (Liu et al., NIPS 2017, section 4).

    All labels of an image compete for the pixels near their boundaries, see
    :func:`rpe_d2.refinement.network.propagate_labels`. In training, the input is Detectron2's list
    of dicts with ``image`` (3, H, W) RGB, and with ``instances`` that have ``gt_masks``, or with
    ``sem_seg`` (H, W). Labels with the errors of other models are made from them, unless the dicts
    have ``coarse_sem_seg`` (K, H, W), the probabilities that a model has predicted. At inference
    they have ``instances`` with ``pred_masks``, or ``coarse_sem_seg``, which are refined.
    """

    dataset_mapper_name = "PixelLabelMapper"
    is_class_agnostic = True

    @configurable
    def __init__(
        self,
        *,
        network: RefinerNetwork,
        max_shift: float = 8.0,
        strength: float = 6.0,
        num_units: int = 2,
        ignored_label: int = 255,
        loss_weight: float = 1.0,
        train_encoder: bool = False,
    ):
        """
        Args:
            network: the network.
            max_shift: pixels up to this distance to a given boundary are learned.
            strength: largest size of the errors in pixels.
            num_units: propagations in sequence; 0 leaves the labels as they are, as a control.
            ignored_label: value of ``sem_seg`` where the label is not known.
            loss_weight: weight of the losses.
            train_encoder: whether the encoder of the network is trained.
        """
        super().__init__()
        check_range("max_shift", max_shift, 1)
        check_range("strength", strength, 1)
        check_range("loss_weight", loss_weight, 0)
        self.network = network
        self.network.encoder.requires_grad_(train_encoder)
        self.max_shift = max_shift
        self.strength = strength
        self.num_units = num_units
        self.ignored_label = ignored_label
        self.loss_weight = loss_weight
        self.register_buffer("_place", torch.zeros(0), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Dict[str, Any]:
        if cfg.INPUT.FORMAT != "RGB":
            raise ValueError(
                f"INPUT.FORMAT is {cfg.INPUT.FORMAT}; allowed for LabelPropagationNet: RGB"
            )
        network = build_refiner_network()
        if cfg.MODEL.TIMM.WEIGHTS:
            state = load_timm_weights(ENCODER, cfg.MODEL.TIMM.WEIGHTS)
            own = network.encoder.state_dict()
            network.encoder.load_state_dict({name: state[name] for name in own})
        return {
            "network": network,
            "max_shift": cfg.MODEL.SPN.MAX_SHIFT,
            "num_units": cfg.MODEL.SPN.NUM_UNITS,
            "ignored_label": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            "loss_weight": cfg.MODEL.SPN.LOSS_WEIGHT,
            "train_encoder": cfg.SOLVER.BACKBONE_MULTIPLIER > 0,
        }

    @classmethod
    def inference_inputs(cls, cfg: CfgNode) -> Tuple[str, ...]:
        """Names what the model needs at inference besides images."""
        return ("coarse_sem_seg",) if cfg.DATASETS.COARSE_DIRS else ("coarse_masks",)

    @property
    def device(self) -> torch.device:
        return self._place.device

    def forward(self, batched_inputs: List[Dict]) -> Any:
        """
        Returns:
            In training a dict of the scalars "loss_labels" and "loss_trust"; otherwise a list of
            dicts with the refined ``instances``.
        """
        if not self.training:
            return [self._refined(item) for item in batched_inputs]
        seed = int(torch.randint(1 << 31, ()))
        random = np.random.default_rng(seed)  # the same after a run is resumed
        examples = [self._example(item, random) for item in batched_inputs]
        size = [max(e["image"].shape[-1 - axis] for e in examples) for axis in (1, 0)]
        count = max(len(e["maps"]) for e in examples)
        for example in examples:
            missing = count - len(example["maps"])
            example["maps"] = F.pad(example["maps"], (0, 0, 0, 0, 0, missing))
        batch = {
            name: torch.stack([_padded(e[name], size) for e in examples]).to(self.device)
            for name in examples[0]
        }
        gates, trust = self.network(batch["image"], batch["distance"], batch["certainty"])
        with torch.autocast(device_type=self.device.type, enabled=False):
            refined = propagate_labels(batch["maps"], gates.float(), trust.float(), self.num_units)
            return self._losses(refined, trust.float(), batch["target"], batch["maps"])

    def _example(self, item: Dict, random: np.random.Generator) -> Dict[str, torch.Tensor]:
        """Makes degraded labels for an image, in as many maps as they need colors."""
        truth = _true_labels(item, self.ignored_label)
        if "coarse_sem_seg" in item:
            return self._predicted_example(item, truth)
        given = degrade_labels(np.maximum(truth, 0), random, self.strength)
        _, indices = np.unique(given, return_inverse=True)
        indices = indices.reshape(given.shape)
        colors, count = color_labels(indices, 2 * self.max_shift)
        maps = (colors[indices] == np.arange(count)[:, None, None]).astype(np.float32)
        if random.random() < _SOFT:
            sigma = random.uniform(0.5, _BLUR)
            maps = np.stack([cv2.GaussianBlur(one, (0, 0), sigma) for one in maps])
            maps /= maps.sum(axis=0)
        color_of = np.full(int(max(given.max(), truth.max())) + 1, _IGNORED)
        color_of[given] = colors[indices]
        target = np.where(truth >= 0, color_of[truth], _IGNORED)
        return self._tensors(item, maps, boundary_distance(given), target)

    def _predicted_example(self, item: Dict, truth: np.ndarray) -> Dict[str, torch.Tensor]:
        """Makes an example of the probabilities that another model has predicted."""
        all_maps = item["coarse_sem_seg"].numpy()
        present, maps = classes_present(all_maps)
        place_of = np.full(max(len(all_maps), int(truth.max()) + 1), _IGNORED)
        place_of[np.flatnonzero(present)] = np.arange(len(maps))
        target = np.where(truth >= 0, place_of[truth], _IGNORED)
        return self._tensors(item, maps, boundary_distance(all_maps.argmax(axis=0)), target)

    def _tensors(
        self, item: Dict, maps: np.ndarray, distance: np.ndarray, target: np.ndarray
    ) -> Dict[str, torch.Tensor]:
        target[distance > self.max_shift] = _IGNORED
        return {
            "image": item["image"].float(),
            "distance": torch.from_numpy(distance),
            "certainty": torch.from_numpy(maps.max(axis=0)),
            "maps": torch.from_numpy(maps),
            "target": torch.from_numpy(target),
        }

    def _losses(
        self,
        refined: torch.Tensor,
        trust: torch.Tensor,
        target: torch.Tensor,
        given: torch.Tensor,
    ) -> Dict[str, torch.Tensor]:
        """Computes the cross-entropies of the refined labels and of the trust in the given ones.

        Args:
            refined, given: (B, K, H, W) in 0-1.
            trust: (B, H, W) logits.
            target: (B, H, W) int64 in [0, K), or -1 where nothing is learned.
        """
        counted = target != _IGNORED
        if not bool(counted.any()):
            nothing = zero_loss(refined) + zero_loss(trust)
            return {"loss_labels": nothing, "loss_trust": nothing}
        log = refined.clamp(min=1e-6).log()
        labels = F.nll_loss(log, target, ignore_index=_IGNORED)
        is_right = (given.argmax(dim=1) == target)[counted].float()
        right = F.binary_cross_entropy_with_logits(trust[counted], is_right)
        return {"loss_labels": self.loss_weight * labels, "loss_trust": self.loss_weight * right}

    @torch.no_grad()
    def _refined(self, item: Dict) -> Dict:
        refiner = LabelRefiner(self.network, self.device, self.num_units)
        if "coarse_sem_seg" in item:
            pixels = item["image"].permute(1, 2, 0).to(torch.uint8).cpu().numpy()
            maps = item["coarse_sem_seg"].cpu().numpy()
            refined = refiner.refine(pixels, maps, max_shift=self.max_shift).result
            size = (item.get("height", maps.shape[1]), item.get("width", maps.shape[2]))
            logits = log_probabilities(torch.from_numpy(refined)[None])  # as evaluators expect
            return {"sem_seg": resize_maps(logits, size)[0]}
        instances = item["instances"].to("cpu")
        image = item["image"]
        size = (item.get("height", image.shape[1]), item.get("width", image.shape[2]))
        image = resize_maps(image[None].float(), size)[0].round().clamp(0, 255)
        pixels = image.permute(1, 2, 0).to(torch.uint8).cpu().numpy()
        masks = (instances.pred_masks.float() >= 0.5).numpy()
        refined = refiner.refine(pixels, masks, max_shift=self.max_shift).result
        output = Instances(size, **instances.get_fields())
        output.pred_masks = torch.from_numpy(refined)
        output.pred_boxes = BitMasks(output.pred_masks).get_bounding_boxes()
        return {"instances": output}


def _true_labels(item: Dict, ignored_label: int) -> np.ndarray:
    """Returns a label map (H, W) int32: 0 for the background, -1 where the label is not known."""
    if "sem_seg" in item:
        labels = item["sem_seg"].numpy().astype(np.int32)
        return np.where(labels == ignored_label, np.int32(-1), labels)
    height, width = item["image"].shape[-2:]
    labels = np.zeros((height, width), np.int32)
    masks = item["instances"].gt_masks.tensor.numpy()
    areas = masks.sum(axis=(1, 2))
    for label, number in enumerate(np.argsort(-areas, kind="stable")):
        labels[masks[number]] = label + 1
    if "ignore_mask" in item:
        labels[item["ignore_mask"].numpy() & (labels == 0)] = -1
    return labels


def _padded(maps: torch.Tensor, size: List[int]) -> torch.Tensor:
    """Pads maps (..., H, W) to the size of a batch."""
    padding = (0, size[1] - maps.shape[-1], 0, size[0] - maps.shape[-2])
    if maps.dtype == torch.int64:
        return F.pad(maps, padding, value=_IGNORED)
    return F.pad(maps[None, None] if maps.dim() == 2 else maps[None], padding, mode="replicate")[
        0
    ].view(*maps.shape[:-2], *size)
