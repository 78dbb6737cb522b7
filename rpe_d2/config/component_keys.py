"""Keys of the other components: guided backbone, spatial propagation, semantic heads, contours."""

from .key import NORMS, Key, Keys


def _guided_backbone_keys() -> Keys:
    """`build_guided_backbone` wraps another backbone and adds the image to its outputs."""
    return {
        "NAME": Key(
            "build_resnet_fpn_backbone",
            "Backbone to wrap. Its outputs gain `image`, the normalized image at stride 1.",
            unit="name of a registered backbone",
        ),
        "SCALES": Key(
            [1.0],
            "Image sizes at which the backbone runs with the same weights. At 0.5 the outputs are "
            "called `res4@0.5`, and the resized image `image@0.5`. All scales differ.",
            above=0,
            unit="factors",
            nonempty=True,
        ),
        "PYRAMID": Key(
            "gaussian",
            "Input of the backbone at each scale. `gaussian`: the resized image. `laplacian`: its "
            "difference from the next smaller one, with normalized contrast; it needs decreasing "
            "SCALES.",
            choices=("gaussian", "laplacian"),
        ),
        "STEM": Key(
            False, "Add the output `stem`, the first convolution of a ResNet, at stride 2."
        ),
        "FREEZE": Key(
            False,
            "Keep the parameters and batch statistics of the wrapped backbone fixed, and turn its "
            "dropout off.",
        ),
    }


def _spatial_transformer_keys() -> Keys:
    """`build_spatial_transformer_backbone` transforms the image before another backbone by a
    transformation that it predicts from the image.
    """
    return {
        "NAME": Key(
            "build_resnet_fpn_backbone",
            "Backbone to wrap.",
            unit="name of a registered backbone",
        ),
        "TRANSFORM": Key(
            "affine",
            "Kind of the transformation. The feature maps are transformed back into the image.",
            choices=("affine", "projective"),
        ),
    }


def _resnets_keys() -> Keys:
    """`build_dilated_resnet_backbone`, Detectron2's ResNet with dilation in two stages.

    `build_short_resnet_fpn_backbone`, a ResNet with FPN that may end at `res3` or `res4`, has no
    keys besides Detectron2's `MODEL.RESNETS.OUT_FEATURES` and `MODEL.FPN.IN_FEATURES`.
    """
    return {
        "RES4_DILATION": Key(
            1,
            "Dilation of the convolutions of `res4`, as in Detectron2's DeepLab project. With 2 "
            "the stage has no stride. `RES5_DILATION` may then be 4.",
            choices=(1, 2),
        ),
    }


def _timm_keys() -> Keys:
    """`build_timm_backbone` and `build_timm_fpn_backbone`, the architectures of timm."""
    return {
        "NAME": Key(
            "tf_efficientnet_lite0",
            "Architecture, one that timm offers with `features_only`.",
            unit="name of a model of timm",
        ),
        "OUT_FEATURES": Key(
            ["res2", "res3", "res4", "res5"],
            "Outputs of the backbone, named after their strides: `res1` has stride 2, `res2` 4, "
            "`res3` 8, `res4` 16 and `res5` 32.",
            unit="outputs of the architecture",
            nonempty=True,
        ),
        "NORM": Key(
            "FrozenBN",
            "What batch normalization becomes. `FrozenBN` suits weights of ImageNet and small "
            "batches.",
            choices=("BN", "FrozenBN", "SyncBN"),
        ),
        "WEIGHTS": Key(
            "",
            "Weights of ImageNet: a file with timm's state dict, or `package://NAME`, an installed "
            "package with one such file. `download`: timm downloads them. Empty: random weights.",
            unit="a file or a package",
        ),
    }


def _spn_keys() -> Keys:
    """Spatial propagation networks: `SPNMaskHead`, `SPNSemSegHead`, `SPNRefiner`, `RPE.REFINE`,
    `LabelPropagationNet`.
    """
    return {
        "IN_FEATURES": Key(
            [],
            "Outputs of the backbone that guide the propagation of whole images. Empty: all.",
            unit="outputs of the backbone",
        ),
        "CONV_DIM": Key(
            64, "Number of channels of the guidance network.", low=1, high=65536, unit="channels"
        ),
        "NORM": Key("GN", "Normalization in the guidance network.", choices=NORMS),
        "CHANNELS": Key(
            8,
            "Number of channels that a mask head or semantic head propagates, each with its own "
            "gates. `SPNSemSegHead` also accepts 0: it then propagates the class probabilities "
            "themselves with one set of gates. An `SPNMaskHead` needs 1 or more.",
            low=0,
            high=65536,
            unit="channels",
        ),
        "NETWORK": Key(
            "masks",
            "What `SPNRefiner` refines. `masks`: any masks, or the maps of "
            "`DATASETS.COARSE_DIRS`, with one set of gates. `classes`: these maps, with the "
            "network that the authors draw; CHANNELS is 32 in their release, and GATE_MODE is "
            "abs_sum. `sparse_labels`, `sparse_color`: it spreads the labels or colors that "
            "`SparsePixelMapper` reveals.",
            choices=("masks", "classes", "sparse_labels", "sparse_color"),
        ),
        "MERGE": Key(
            "max",
            "How the network `classes` merges the four directions. `learned`: weights of the "
            "directions.",
            choices=("max", "mean", "learned"),
        ),
        "INPUTS": Key(
            "probabilities",
            "What the network `classes` propagates: class probabilities, or their logarithms.",
            choices=("probabilities", "logits"),
        ),
        "MAX_SHIFT": Key(
            8.0,
            "Largest distance by which `LabelPropagationNet` moves a boundary.",
            low=1,
            unit="pixels",
        ),
        "NUM_UNITS": Key(
            2,
            "Number of successive propagations with the same gates. 0: none, as a control.",
            low=0,
            high=100,
        ),
        "GATE_MODE": Key(
            "softmax",
            "Normalization of the gates, see `rpe_d2.ops.propagation.normalize_gates`. "
            "`RPE.REFINE`, CHANNELS 0 and `SPNRefiner` need `softmax`, except its NETWORK "
            "`classes`.",
            choices=("softmax", "abs_sum", "clipped"),
        ),
        "CONNECTIONS": Key(
            3,
            "Number of gates of a pixel and direction. 1: only the neighbor in the same row or "
            "column.",
            choices=(1, 3),
        ),
        "STRIDE": Key(
            2,
            "Stride of the map on which whole images are propagated.",
            choices=(1, 2, 4, 8, 16, 32),
            unit="pixels",
        ),
        "RESOLUTION": Key(
            0,
            "Side of the masks that `SPNMaskHead` refines: a multiple of twice "
            "`MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION`. 0: twice the POOLER_RESOLUTION.",
            low=0,
            high=4096,
            unit="cells",
        ),
        "SEM_SEG_HEAD": Key(
            "SemSegFPNHead",
            "Semantic head whose scores `SPNSemSegHead` refines.",
            unit="name of a registered semantic head",
        ),
        "FREEZE_HEAD": Key(
            False,
            "Keep that head, loaded from `MODEL.WEIGHTS`, fixed and train only its refinement. "
            "The backbone must be fixed as well: `MODEL.GUIDED_BACKBONE.FREEZE`.",
        ),
        "LOSS_WEIGHT": Key(
            1.0,
            "Weight of the loss after refinement. `SPNSemSegHead` multiplies it by "
            "`MODEL.SEM_SEG_HEAD.LOSS_WEIGHT`.",
            low=0,
        ),
    }


def _tpn_keys() -> Keys:
    """`TemporalPropagationNet`, which carries a property of a key frame to other frames."""
    return {
        "PROPERTY": Key(
            "ab",
            "What is propagated. `ab`: colors, guided by lightness. `rgb`: the full range of "
            "intensities, guided by a picture with clipped highlights. `masks`: any number of "
            "masks, guided by the picture.",
            choices=("ab", "rgb", "masks"),
        ),
        "STRIDE": Key(
            2,
            "Stride of the map on which the property is propagated. At 4, small videos would lose "
            "more than optical flow does.",
            choices=(1, 2),
            unit="pixels",
        ),
        "GATE_MODE": Key(
            "clipped",
            "Normalization of the gates, see `rpe_d2.ops.propagation.normalize_gates`. `clipped` "
            "has gates of both signs and contains the identity; `softmax` loses energy, and "
            "`abs_sum` gains some.",
            choices=("softmax", "abs_sum", "clipped"),
        ),
        "MERGE": Key(
            "learned",
            "How the four directions are merged. `learned`: by predicted weights of the directions "
            "at each cell. The maximum would bias channels whose mean is 0.",
            choices=("mean", "learned"),
        ),
        "STYLE_LOSS_WEIGHT": Key(
            0.1,
            "Weight of the style energy, the change of the features' Gram matrix.",
            low=0,
        ),
    }


def _mask_head_keys() -> Keys:
    """Inputs of the mask head under `GuidedROIHeads` and `GuidedCascadeROIHeads`; superpixels."""
    return {
        "IN_FEATURES": Key(
            [],
            'Outputs of the backbone that the mask head gets; it needs POOLER_TYPE "". Empty: '
            "`MODEL.ROI_HEADS.IN_FEATURES`, as in Detectron2.",
            unit="outputs of the backbone",
        ),
        "SUPERPIXELS": Key(
            0,
            "Approximate number of superpixels of an image (SLIC), of which the masks of "
            "`SDSROIHeads` and, at inference, `HypercolumnMaskHead` consist, as in their papers. "
            "The head needs the output `image` of `build_guided_backbone`; HypercolumnMaskHead in "
            "IN_FEATURES, where it is then no part of the hypercolumns. 0: none.",
            low=0,
            high=65536,
            unit="superpixels",
        ),
    }


def _proposal_generator_keys() -> Keys:
    """Proposals with masks."""
    return {
        "MASKS_IN_TRAINING": Key(
            False,
            "Give proposals masks in training as well. `SDSROIHeads` masks its features with "
            "them, and uses whole boxes without. It needs a proposal generator that predicts "
            "masks.",
        ),
    }


def _sem_seg_head_keys() -> Keys:
    """Semantic heads of this package. Their other settings are Detectron2's own keys."""
    return {
        "PAIR_LOSS_WEIGHT": Key(
            -1.0,
            "Weight of the pair loss on the semantic labels (Kong & Fowlkes, section 6). It uses "
            "EMBEDDING_DIM, MARGIN, PAIR_LOSS_FORM, PAIR_LOSS_NORMALIZATION, POSITIVE_WEIGHT, "
            "NEGATIVE_WEIGHT and TRAIN_POINTS of `MODEL.RPE`. 0: no pair loss. -1: the default of "
            "the head, which is 1 for `EmbeddingSemSegHead` and 0 for the others.",
            low=-1,
        ),
        "CLASS_BALANCE": Key(
            0.0,
            "Weigh classes in the cross-entropy by their inverse frequency among the pixels of "
            "`DATASETS.TRAIN`, to this power. 0: no weights. 1: all classes weigh the same, "
            "however rare they are.",
            low=0,
            high=1,
        ),
        "ACTIVATION": Key(
            "relu",
            "Nonlinearity of the hidden layer of `MultiScaleSemSegHead`. Its authors use `tanh`.",
            choices=("relu", "tanh"),
        ),
        "NUM_CONVS": Key(
            2,
            "Number of 3x3 convolutions that the predictions of `EmbeddingSemSegHead` share, or "
            "of each pass of `RecurrentConvSemSegHead`.",
            low=0,
            high=100,
        ),
        "RECURRENT_NETWORK": Key(
            "",
            "`RecurrentConvSemSegHead`: the network of Pinheiro & Collobert that is applied to the "
            "patch around every pixel; it needs IN_FEATURES `[image]`. Empty: one of NUM_CONVS "
            "convolutions on all IN_FEATURES.",
            choices=("", "CNN1", "CNN2", "CNN3"),
        ),
        "RECURRENT_SCALES": Key(
            [0.125, 0.25, 0.5, 1.0],
            "`RecurrentConvSemSegHead`: image sizes of its successive passes, each 1, 0.5, 0.25 "
            "and so on. The last pass gives the result. With RECURRENT_NETWORK `CNN2`, `[1.0, "
            "0.25]` are two passes, and with `CNN3`, `[1.0, 0.5, 0.25]` are three.",
            above=0,
            high=1,
            unit="factors",
            nonempty=True,
        ),
    }


def _boundary_keys() -> Keys:
    """Contour detection on BSDS (`BoundaryEmbeddingNet`)."""
    return {
        "IN_FEATURES": Key(
            [],
            "Outputs of the backbone that each get an embedding. One more embedding comes from "
            "all of them together. Empty: all.",
            unit="outputs of the backbone",
        ),
        "STRIDE": Key(
            4,
            "Stride of the common map of the outputs. 2 is useful only with the output `stem` of "
            "`build_guided_backbone`, since a plain ResNet has nothing finer than 4. Losses are "
            "computed at every pixel, by interpolation.",
            choices=(1, 2, 4, 8),
            unit="pixels",
        ),
        "CONV_DIM": Key(
            64, "Channels of the convolution of each output.", low=1, high=65536, unit="channels"
        ),
        "NORM": Key("GN", "Normalization of these convolutions.", choices=NORMS),
        "EMBEDDING_DIM": Key(
            3, "Dimension D of the embeddings, which lie on the unit sphere.", low=1, high=4096
        ),
        "CONSENSUS": Key(
            "weighted",
            "How annotators are combined. `weighted`: a pixel is a contour with the fraction of "
            "the annotators who marked it as weight, and not a contour with the rest. `any`: it "
            "is a contour if anyone marked it. `minimum`: it is a contour if MIN_ANNOTATORS (or "
            "all, if there are fewer) marked it, and ignored if fewer did.",
            choices=("weighted", "any", "minimum"),
        ),
        "MIN_ANNOTATORS": Key(3, "See CONSENSUS.", low=1, unit="annotators"),
        "PAIR_LOSS_WEIGHT": Key(
            1.0,
            "Weight of the two-group pair loss, averaged over the outputs. 0: no pair loss.",
            low=0,
        ),
        "LOGISTIC_LOSS_WEIGHT": Key(
            1.0,
            "Weight of the balanced cross-entropy of the logistic stage, averaged over the "
            "outputs. 0: no logistic stage; a pixel is then scored by its position between the "
            "centers of the two groups.",
            low=0,
        ),
        "MARGIN": Key(
            0.5,
            "Margin alpha of the pair loss: the groups repel each other where their calibrated "
            "similarity (1 + cos) / 2 exceeds it.",
            low=0,
            high=1,
        ),
        "POSITIVE_WEIGHT": Key(1.0, "Weight of same-group pairs in the pair loss.", low=0),
        "NEGATIVE_WEIGHT": Key(1.0, "Weight of different-group pairs in the pair loss.", low=0),
        "TRAIN_POINTS": Key(
            1024,
            "Pixels of an image that enter the pair loss, half of them on contours.",
            low=2,
            unit="pixels",
        ),
        "TEST_SCALES": Key(
            [1.0],
            "Image sizes over which the predictions are averaged at inference.",
            above=0,
            unit="factors",
            nonempty=True,
        ),
        "THIN": Key(
            False,
            "Thin the predicted contours by non-maximum suppression across their direction. "
            "Without it the evaluator thins them at each threshold, which scores clearly worse.",
        ),
    }


COMPONENT_NODES = {
    "MODEL.RESNETS": _resnets_keys,
    "MODEL.GUIDED_BACKBONE": _guided_backbone_keys,
    "MODEL.SPATIAL_TRANSFORMER": _spatial_transformer_keys,
    "MODEL.TIMM": _timm_keys,
    "MODEL.SPN": _spn_keys,
    "MODEL.TPN": _tpn_keys,
    "MODEL.ROI_MASK_HEAD": _mask_head_keys,
    "MODEL.PROPOSAL_GENERATOR": _proposal_generator_keys,
    "MODEL.SEM_SEG_HEAD": _sem_seg_head_keys,
    "MODEL.BOUNDARY": _boundary_keys,
}
