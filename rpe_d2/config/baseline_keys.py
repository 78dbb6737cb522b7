"""Keys of the baselines."""

from typing import Tuple

from .key import Key, Keys


def _vgg_keys() -> Keys:
    """`build_vgg16_backbone`. `MODEL.BACKBONE.FREEZE_AT` counts its blocks."""
    convolutions = [
        f"conv{b}_{i}" for b, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, n + 1)
    ]
    poolings = [f"pool{block}{suffix}" for suffix in ("", "_indices") for block in range(1, 6)]
    return {
        "OUT_FEATURES": Key(
            ["pool3", "pool4", "conv5_3"],
            "Outputs of the backbone. `pool1_indices` to `pool5_indices` hold the positions of "
            "the maxima, for DeconvNet.",
            choices=(*convolutions, *poolings, "fc6", "fc7"),
            nonempty=True,
        ),
        "NORM": Key("", "Normalization after the convolutions.", choices=("", "BN", "FrozenBN")),
        "WIDTH": Key(
            1.0, "Factor of the number of channels. With 1 the blocks have 64 to 512.", above=0
        ),
        "HOLES": Key(
            False,
            "Give `pool4` stride 1 and dilate the convolutions after it, which then have stride 8, "
            "as in InstanceFCN. There is no output after `conv5_3`.",
        ),
        "FC_DIM": Key(
            4096, "Number of channels of `fc6` and `fc7`.", low=1, high=65536, unit="channels"
        ),
        "DROPOUT": Key(0.5, "Dropout probability of `fc6` and `fc7` in training.", low=0, below=1),
        "WEIGHTS": Key(
            "",
            "File with the state dict of torchvision's `vgg16`, or of `vgg16_bn` with NORM `BN` "
            "or `FrozenBN`. Empty: random weights.",
            unit="a file",
        ),
    }


def _mnc_keys() -> Keys:
    """Multi-task network cascades (`MNCROIHeads`). More keys: RPN, ROI_HEADS and ROI_BOX_HEAD."""
    return {
        "NUM_STAGES": Key(
            5,
            "3: boxes, masks, classes. 5: masks and classes again for the regressed boxes.",
            choices=(3, 5),
        ),
        "RESOLUTION": Key(
            14,
            "Side of the features of a region, an even number. They are warped at twice this "
            "resolution and pooled.",
            unit="cells",
            low=0,
            high=4096,
        ),
        "MASK_DIM": Key(256, "Hidden units of the mask layer.", low=1, high=65536, unit="units"),
        "FC_DIM": Key(
            4096,
            "Hidden units of each layer for boxes and for masked features.",
            low=1,
            high=65536,
            unit="units",
        ),
    }


def _fcis_keys() -> Keys:
    """Fully convolutional instance-aware segmentation (`FCISROIHeads`). More keys: ROI_HEADS."""
    return {
        "CONV_DIM": Key(
            1024,
            "Number of channels of the 1x1 convolution before the score maps.",
            low=1,
            high=65536,
            unit="channels",
        ),
    }


def _window_keys(
    features: str,
    window: int,
    scale: float,
    batch_size: int,
    topk: Tuple[int, int, int],
    nms_threshold: float,
) -> Keys:
    """The keys that DeepMask and InstanceFCN share, with the defaults of each."""
    pre_nms, post_nms_train, post_nms_test = topk
    return {
        "IN_FEATURES": Key(
            [features],
            "Maps of the image pyramid, all with the same number of channels: levels of an FPN, "
            "or the scales of `MODEL.GUIDED_BACKBONE.SCALES` such as `res4@0.5`.",
            unit="maps of the backbone",
            nonempty=True,
        ),
        "WINDOW": Key(
            window, "Side of a window. InstanceFCN needs an odd number.", 1, unit="cells"
        ),
        "POSITIVE_SCALE": Key(
            scale,
            "A centered window is positive for an object whose size differs by at most this much "
            "from the canonical size, which is 128 pixels in a window of 224.",
            low=0,
            unit="octaves",
        ),
        "BATCH_SIZE_PER_IMAGE": Key(
            batch_size,
            "Windows of an image to train on, half of them positive. Where fewer are positive, as "
            "many are negative.",
            low=2,
            unit="windows",
        ),
        "PRE_NMS_TOPK": Key(
            pre_nms,
            "Number of the best windows of an image, over all scales, whose masks are predicted.",
            low=1,
            unit="windows",
        ),
        "POST_NMS_TOPK_TRAIN": Key(
            post_nms_train,
            "Number of proposals of an image in training. 0: none, for a `ProposalNetwork`.",
            low=0,
            unit="proposals",
        ),
        "POST_NMS_TOPK_TEST": Key(
            post_nms_test,
            "Number of proposals of an image at inference.",
            low=1,
            unit="proposals",
        ),
        "NMS_THRESH": Key(
            nms_threshold,
            "Of two proposals whose boxes have a higher IoU than this, the one with the lower "
            "score is dropped. 1: no suppression.",
            low=0,
            high=1,
        ),
    }


def _deepmask_keys() -> Keys:
    """Mask proposals from windows on an image pyramid (`DeepMask`, `SharpMask`)."""
    return {
        **_window_keys("res4", 14, 0.25, 64, (500, 500, 500), 1.0),
        "CONV_DIM": Key(
            128, "Channels of the 1x1 convolution.", low=1, high=65536, unit="channels"
        ),
        "CODE_DIM": Key(
            512,
            "Length of the code of a window: the rank of the mask layer.",
            low=1,
            high=65536,
            unit="units",
        ),
        "SCORE_DIM": Key(
            1024, "Hidden units of the score branch.", low=1, high=65536, unit="units"
        ),
        "MASK_SIZE": Key(56, "Side of the predicted masks.", low=1, high=4096, unit="cells"),
        "MASK_THRESHOLD": Key(
            0.2,
            "Probability from which on a cell belongs to the object.",
            low=0.01,
            high=0.99,
        ),
        "LOW_RANK": Key(
            True,
            "Predict masks from the code. False: from all features of a window, with "
            "CONV_DIM WINDOW^2 / CODE_DIM times as many weights (DeepMaskFull).",
        ),
        "ALTERNATE": Key(
            False,
            "Learn masks and scores in alternate steps, as in the paper. In distributed training "
            "this needs `SOLVER.FIND_UNUSED_PARAMETERS`.",
        ),
        "MASK_CLASSES": Key(
            [],
            "Classes of the objects whose masks are learned, from 0. Empty: all.",
            low=0,
            elements=int,
            unit="classes",
        ),
        "SCORE_CLASSES": Key(
            [],
            "Classes of the objects for which windows are positive, from 0. Others count as "
            "background. Empty: all.",
            low=0,
            elements=int,
            unit="classes",
        ),
        "SHARPMASK_FEATURES": Key(
            ["res4", "res3", "res2", "stem"],
            "`SharpMask`: maps that refine the masks, from the map of the windows to finer ones, "
            "each of half the stride of the one before. For `res4@0.5` they are `res4@0.5`, "
            "`res3@0.5` and so on. `stem` needs `MODEL.GUIDED_BACKBONE.STEM`; `image` may come "
            "last.",
            unit="maps of the backbone",
        ),
    }


def _instance_fcn_keys() -> Keys:
    """Mask proposals from instance-sensitive score maps (`InstanceFCN`)."""
    return {
        **_window_keys("p3", 21, 0.3, 256, (2000, 1000, 1000), 0.8),
        "PARTS": Key(
            5,
            "k: a window has k x k parts, each with its own score map.",
            low=1,
            high=64,
            unit="parts",
        ),
        "CONV_DIM": Key(
            512,
            "Hidden channels of the mask branch and the score branch.",
            low=1,
            high=65536,
            unit="channels",
        ),
    }


def _hypercolumn_keys() -> Keys:
    """Hypercolumns (`HypercolumnMaskHead`). More keys: `MODEL.ROI_MASK_HEAD`."""
    return {"RESOLUTION": Key(50, "Side of the masks.", low=1, high=512, unit="cells")}


BASELINE_NODES = {
    "MODEL.VGG": _vgg_keys,
    "MODEL.MNC": _mnc_keys,
    "MODEL.FCIS": _fcis_keys,
    "MODEL.DEEPMASK": _deepmask_keys,
    "MODEL.INSTANCE_FCN": _instance_fcn_keys,
    "MODEL.HYPERCOLUMN": _hypercolumn_keys,
}
