"""Propagation of a property from key frames of a video to other frames."""

from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.events import get_event_storage
from torch import nn
from torch.nn import functional as F

from rpe_d2.config import check_config
from rpe_d2.ops.orthogonality import measure_orthogonality
from rpe_d2.utils.frame_properties import GUIDANCE_CHANNELS, PROPERTY_CHANNELS

from ..argument_checks import check_range
from ..temporal_propagation import TemporalMaps, TemporalPropagation, charbonnier, style_energy

# Every so many iterations, the orthogonality of the propagation is estimated with random vectors.
_MEASURE_PERIOD, _NUM_PROBES = 20, 2
_DIRECTIONS = ("left_to_right", "right_to_left", "top_down", "bottom_up", "merged")
_RANGES = {"ab": (-1.0, 1.0), "rgb": (0.0, 1.0), "masks": (0.0, 1.0)}
_MOST_GATES = 2**26  # that are in memory at once, 256 MB in float32


class _Batch(NamedTuple):
    """Pairs of frames of one size, whose roles can be exchanged.

    Attributes:
        properties: (N, C, H, W) of the first frames, and of the second ones.
        guidances: (B, G, H, W) of the first frames, and of the second ones.
        pair: (N,) the pair that each property belongs to. None: each pair has one.
        inside: (N, 1, H, W) 1 where a frame is, and 0 in its padding.
    """

    properties: List[torch.Tensor]
    guidances: List[torch.Tensor]
    pair: Optional[torch.Tensor]
    inside: torch.Tensor


@META_ARCH_REGISTRY.register()
class TemporalPropagationNet(nn.Module):
    """Carries a property of a key frame to another frame (Liu et al., ECCV 2018).

    The input is a list of dicts with

    * ``key_property`` (K, H, W) of the key frame, where K is a multiple of the network's number of
      channels. Each group of channels is propagated with the same gates, so that there may be any
      number of masks;
    * ``key_guidance`` and ``target_guidance`` (G, H, W) in 0-1, what is known of both frames;
    * in training, ``target_property`` (K, H, W).

    :mod:`rpe_d2.utils.frame_properties` describes the properties and their guidances. The output
    dicts have ``property`` (K, H, W) of the target frame. Frames of any size are padded.

    Training is switchable: both frames of a pair are the key frame in turn, with the same weights.
    """

    dataset_mapper_name = "FramePairMapper"
    is_class_agnostic = True

    @configurable
    def __init__(
        self,
        *,
        network: TemporalPropagation,
        value_range: Tuple[float, float] = (-1.0, 1.0),
        style_loss_weight: float = 0.1,
    ):
        """
        Args:
            network: the network.
            value_range: smallest and largest value of the property. Predictions are clipped.
            style_loss_weight: weight of the style energy in the loss.
        """
        super().__init__()
        check_range("style_loss_weight", style_loss_weight, 0)
        self.network = network
        self.value_range = value_range
        self.style_loss_weight = style_loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Dict[str, Any]:
        check_config(cfg, "MODEL.TPN")
        tpn = cfg.MODEL.TPN
        network = TemporalPropagation(
            PROPERTY_CHANNELS[tpn.PROPERTY],
            GUIDANCE_CHANNELS[tpn.PROPERTY],
            stride=tpn.STRIDE,
            gate_mode=tpn.GATE_MODE,
            merge=tpn.MERGE,
        )
        return {
            "network": network,
            "value_range": _RANGES[tpn.PROPERTY],
            "style_loss_weight": tpn.STYLE_LOSS_WEIGHT,
        }

    @classmethod
    def evaluation_mapper_name(cls, cfg: CfgNode) -> str:
        """Names the mapper that provides the pairs of an evaluation."""
        return cls.dataset_mapper_name

    @classmethod
    def inference_inputs(cls, cfg: CfgNode) -> Tuple[str, ...]:
        """Names what the model needs at inference besides images."""
        return ("key_frame",)

    @classmethod
    def check_run(cls, cfg: CfgNode, has_weights: bool) -> None:
        """Raises a ValueError if a data set of the run has no pairs of frames."""
        for key in ("TRAIN", "TEST"):
            for name in cfg.DATASETS[key]:
                if MetadataCatalog.get(name).get("evaluator_type") != "frame_pairs":
                    raise ValueError(
                        f"DATASETS.{key} names {name!r}; allowed with TemporalPropagationNet: data "
                        "sets of DATASETS.FRAME_PAIRS"
                    )

    @property
    def device(self) -> torch.device:
        return self.network.direct.device

    def forward(self, batched_inputs: List[Dict]) -> Any:
        """
        Returns:
            In training a dict of the scalars "loss_forward", of the target frames, "loss_backward",
            of the key frames after the roles are exchanged, and "loss_style"; otherwise the result
            of :meth:`inference`.
        """
        if not self.training:
            return self.inference(batched_inputs)
        batch = self._batch(batched_inputs)
        maps = [self._maps(batch, first, 1 - first) for first in (0, 1)]
        with torch.autocast(device_type=self.device.type, enabled=False):
            losses = [
                self._loss(m.prediction, batch.properties[1 - first], batch.inside)
                for first, m in enumerate(maps)
            ]
            style = torch.cat([style_energy(m.propagated, m.features) for m in maps]).mean()
        self._log(maps[0], style)
        return {
            "loss_forward": losses[0],
            "loss_backward": losses[1],
            "loss_style": self.style_loss_weight * style,
        }

    @torch.no_grad()
    def inference(self, batched_inputs: List[Dict]) -> List[Dict]:
        """Propagates the property of each dict; see the class."""
        return [
            {
                "property": self.propagate(
                    *(item[name] for name in ("key_property", "key_guidance", "target_guidance"))
                )
            }
            for item in batched_inputs
        ]

    @torch.no_grad()
    def propagate(
        self,
        key_property: torch.Tensor,
        key_guidance: torch.Tensor,
        target_guidance: torch.Tensor,
    ) -> torch.Tensor:
        """Propagates a property from a key frame to a target frame.

        If there is optical flow, ``key_property`` and ``key_guidance`` may be warped by it to the
        target frame. The network then corrects what flow leaves.

        Args:
            key_property: (K, H, W) or (B, K, H, W), of the type of property that the network was
                trained for. K is a multiple of its number of channels.
            key_guidance: (G, H, W) or (B, G, H, W) in 0-1, the guidance of the key frame.
            target_guidance: like ``key_guidance``, of the target frame.

        Returns:
            Like ``key_property``, on the device of the network.

        Raises:
            ValueError: Shapes do not fit each other or the network.
        """
        self._check(key_property, key_guidance, target_guidance)
        if key_property.numel() == 0:
            return key_property.to(self.device)
        is_single = key_property.dim() == 3
        tensors = (key_property, key_guidance, target_guidance)
        maps, key, target = (
            (t[None] if is_single else t).to(self.device, torch.float32) for t in tensors
        )
        groups = maps.shape[1] // self.network.property_channels
        size = maps.shape[-2:]
        flat = maps.reshape(-1, self.network.property_channels, *size)
        pair = torch.arange(len(maps), device=self.device).repeat_interleave(groups)
        padded_size = self._padded_size(size)
        flat, key, target = (_padded(t, padded_size) for t in (flat, key, target))
        guide = self.network.guide(key, target)
        # Each property has gates of its own, so that many masks would take a lot of memory.
        step = max(1, _MOST_GATES // guide.gates[0].numel())
        parts = [
            self.network.carry(properties, guide.of(own)).prediction
            for properties, own in zip(flat.split(step), pair.split(step))
        ]
        prediction = torch.cat(parts)[..., : size[0], : size[1]].clamp(*self.value_range)
        return prediction.reshape(key_property.shape)

    def _check(self, key_property: torch.Tensor, *guidances: torch.Tensor) -> None:
        channels, known = self.network.property_channels, self.network.guidance_channels
        shape = tuple(key_property.shape)
        if len(shape) not in (3, 4) or shape[-3] % channels or 0 in shape[-2:]:
            raise ValueError(
                f"key_property has shape {shape}; allowed: (K, H, W) or (B, K, H, W), where K is a "
                f"multiple of {channels}"
            )
        expected = (*shape[:-3], known, *shape[-2:])
        for name, guidance in zip(("key_guidance", "target_guidance"), guidances):
            if tuple(guidance.shape) != expected:
                raise ValueError(
                    f"{name} has shape {tuple(guidance.shape)}; allowed with key_property {shape}: "
                    f"{expected}"
                )

    def _batch(self, batched_inputs: Sequence[Dict]) -> _Batch:
        """Pads the frames of a batch to one size."""
        for item in batched_inputs:
            self._check(item["key_property"], item["key_guidance"], item["target_guidance"])
            shapes = [tuple(item[f"{role}_property"].shape) for role in ("key", "target")]
            if shapes[0] != shapes[1]:
                raise ValueError(f"target_property has shape {shapes[1]}; allowed: {shapes[0]}")
        sizes = [item["key_guidance"].shape[-2:] for item in batched_inputs]
        size = self._padded_size([max(sides) for sides in zip(*sizes)])
        channels = self.network.property_channels
        properties: List[List[torch.Tensor]] = [[], []]
        guidances: List[List[torch.Tensor]] = [[], []]
        pair, inside = [], []
        for number, item in enumerate(batched_inputs):
            for place, role in enumerate(("key", "target")):
                maps = item[f"{role}_property"].to(self.device)
                maps = maps.reshape(len(maps) // channels, channels, *maps.shape[-2:])
                properties[place].append(_padded(maps, size))
                guidance = item[f"{role}_guidance"].to(self.device)
                guidances[place].append(_padded(guidance[None], size))
            height, width = sizes[number]
            frame = maps.new_zeros(len(maps), 1, *size)
            frame[..., :height, :width] = 1
            inside.append(frame)
            pair += [number] * len(maps)
        is_one_each = pair == list(range(len(batched_inputs)))
        return _Batch(
            [torch.cat(maps) for maps in properties],
            [torch.cat(maps) for maps in guidances],
            None if is_one_each else torch.tensor(pair, device=self.device),
            torch.cat(inside),
        )

    def _maps(self, batch: _Batch, key: int, target: int) -> TemporalMaps:
        return self.network(
            batch.properties[key], batch.guidances[key], batch.guidances[target], batch.pair
        )

    def _loss(
        self, prediction: torch.Tensor, target: torch.Tensor, inside: torch.Tensor
    ) -> torch.Tensor:
        difference = charbonnier(prediction.float() - target) * inside
        return difference.sum() / (inside.sum() * target.shape[1])

    def _log(self, maps: TemporalMaps, style: torch.Tensor) -> None:
        storage = get_event_storage()
        storage.put_scalar("propagation/style_energy", float(style))
        if storage.iter % _MEASURE_PERIOD:
            return
        generator = torch.Generator().manual_seed(0)  # the same vectors each time
        measures = measure_orthogonality(
            maps.gates[:1], maps.weights[:, :1], _NUM_PROBES, generator
        )
        for name, deviation, energy in zip(_DIRECTIONS, *measures):
            storage.put_scalar(
                f"propagation/deviation_{name}", float(deviation), smoothing_hint=False
            )
            storage.put_scalar(f"propagation/energy_{name}", float(energy), smoothing_hint=False)

    def _padded_size(self, size: Sequence[int]) -> List[int]:
        divisor = self.network.size_divisibility
        return [-(-side // divisor) * divisor for side in size]


def _padded(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Repeats the last row and column of maps (N, C, h, w) up to a size (H, W)."""
    below, right = (whole - part for whole, part in zip(size, maps.shape[-2:]))
    if below == right == 0:
        return maps
    return F.pad(maps, (0, right, 0, below), mode="replicate")
