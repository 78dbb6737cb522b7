"""Tables of scene labeling, semantic segmentation and spatial transformers."""

from typing import Tuple

from dev.papers.entries import CODE, DATA, TIME, Figure, Measured, Row, Table, measured

_SLIDES, _SPEC = "sources/segmentation_and_attention_slides.txt", "spec/real_data.md"
_MULTI_SCALE = "paper/multi_scale_stanford.yaml"
_RECURRENT = "paper/rcnn2_stanford.yaml"
_LITE = "semantic/embedding_stanford_efficientnet_lite0.yaml"


def _scene(name: str, training: str = "") -> Measured:
    """Returns the figures of a row from the records of dev/scene_runs.py."""
    return measured(
        f"scene/{name}_[0-9].json",
        *("metrics/sem_seg/pACC", "metrics/sem_seg/mACC"),
        data="Stanford Background, one split",
        training=training,
    )


_STANFORD = Table(
    name="scenes of Stanford Background",
    subject="network",
    columns=("pixel accuracy", "class accuracy, %"),
    source=_SPEC,
    caption="Published: Stanford Background, five splits, table 3 of Pinheiro & Collobert.",
    rows=(
        Row("multi-scale network", (), _scene("multi_scale"), _MULTI_SCALE),
        Row(
            "multi-scale + superpixels",
            ("78.8", "72.4"),
            _scene("multi_scale_superpixels", "scene/multi_scale_[0-9].json"),
            _MULTI_SCALE,
        ),
        Row("multi-scale + CRF", ("81.4", "76.0"), TIME, _MULTI_SCALE),
        Row("CNN1", ("79.4", "69.5"), TIME, _RECURRENT),
        Row("CNN2", ("67.9", "58.0"), TIME, _RECURRENT),
        Row("rCNN2, two passes", ("79.5", "69.5"), _scene("rcnn2"), _RECURRENT),
        Row("rCNN3, two passes", ("76.2", "67.2"), TIME, _RECURRENT),
        Row(
            "rCNN3, three passes, half resolution",
            ("79.8", "69.3"),
            TIME,
            _RECURRENT,
        ),
        Row("rCNN3, three passes", ("80.2", "69.9"), TIME, _RECURRENT),
        Row("EfficientNet-Lite0 (ImageNet)", (), _scene("efficientnet_0"), _LITE),
        Row("EfficientNet-Lite0 (ImageNet), pair loss", (), _scene("efficientnet_1"), _LITE),
    ),
)

_RESOLUTIONS = Table(
    name="resolution of rCNN3",
    subject="resolution",
    columns=("pixel accuracy, %",),
    source=_SPEC,
    caption="Published: Stanford Background, rCNN3 with three passes, the same paper.",
    rows=(
        Row("1/8", ("78.4",), TIME, _RECURRENT),
        Row("1/4", ("79.3",), TIME, _RECURRENT),
        Row("1/2", ("79.8",), TIME, _RECURRENT),
        Row("1", ("80.2",), TIME, _RECURRENT),
    ),
)

_FCN_VOC, _FEATURES = "semantic/fcn_8s_voc.yaml", "MODEL.SEM_SEG_HEAD.IN_FEATURES"
_FCN = Table(
    name="FCN on VOC",
    subject="network",
    columns=("mIoU",),
    source=_SPEC,
    caption="Published: VOC 2012 seg11valid, Long et al. (CVPR 2015).",
    rows=(
        Row("FCN-32s", ("63.6",), DATA, _FCN_VOC, f"{_FEATURES} ['fc7']"),
        Row("FCN-16s", ("65.0",), DATA, _FCN_VOC, f"{_FEATURES} ['pool4','fc7']"),
        Row("FCN-8s", ("65.5",), DATA, _FCN_VOC),
    ),
)


def _deconvnet(name: str, *stages: str) -> Measured:
    """Returns the figure of a way to predict, trained in stages, of dev/deconvnet_runs.py."""
    records, path = "scene/deconvnet_[0-9].json", f"scores/{name}/mIoU"
    seconds = tuple(f"training_cpu_seconds/{stage}" for stage in stages)
    return measured(records, path, data="shapes", seconds=seconds)


_STAGES, _DECONVNET_SHAPES = ("objects", "images"), "semantic/deconvnet_shapes.yaml"


_DECONVNET = Table(
    name="DeconvNet on VOC",
    subject="network",
    columns=("mIoU",),
    source="spec/baselines.md",
    caption="Published: VOC 2012 test, in the papers of the networks.",
    rows=(
        Row("FCN-8s", ("67.2",), _deconvnet("FCN-8s", "fcn"), "semantic/fcn_8s_vgg16_shapes.yaml"),
        Row("DeconvNet, with FCN-8s and CRF", ("72.5",), DATA, "semantic/deconvnet_voc.yaml"),
        Row(
            "DeconvNet, one stage",
            (),
            _deconvnet("DeconvNet, one stage", "control"),
            _DECONVNET_SHAPES,
        ),
        Row(
            "DeconvNet, two stages",
            (),
            _deconvnet("DeconvNet, two stages", *_STAGES),
            _DECONVNET_SHAPES,
        ),
        Row(
            "sum over proposals",
            (),
            _deconvnet("DeconvNet, sum over proposals", *_STAGES),
            _DECONVNET_SHAPES,
        ),
        Row(
            "maximum over proposals",
            (),
            _deconvnet("DeconvNet, maximum over proposals", *_STAGES),
            _DECONVNET_SHAPES,
        ),
        Row(
            "two stages, with FCN-8s",
            (),
            _deconvnet("DeconvNet, two stages, with FCN-8s", *_STAGES, "fcn"),
            _DECONVNET_SHAPES,
        ),
    ),
)

_DISTORTIONS = ("R", "RTS", "P", "E")


def _transformer(network: str, transform: str) -> Measured:
    """Returns the errors of a network from the records of dev/attention_runs.py."""
    return Measured(
        tuple(
            Figure((f"attention/{distortion}_{network}.json",), f"runs/{transform}/*/error")
            for distortion in _DISTORTIONS
        ),
        "8,000 digits of MNIST",
        seconds=(f"runs/{transform}/*/cpu_seconds",),
    )


_ERRORS: Tuple[Tuple[str, str, str, Tuple[str, ...]], ...] = (
    ("FCN", "FCN", "none", ("2.1", "5.2", "3.1", "3.2")),
    ("CNN", "CNN", "none", ("1.2", "0.8", "1.5", "1.4")),
    ("ST-FCN, affine", "FCN", "affine", ("1.2", "0.8", "1.5", "2.7")),
    ("ST-FCN, projective", "FCN", "projective", ("1.3", "0.9", "1.4", "2.6")),
    ("ST-FCN, thin plate spline", "FCN", "tps", ("1.1", "0.8", "1.4", "2.4")),
    ("ST-CNN, affine", "CNN", "affine", ("0.7", "0.5", "0.8", "1.2")),
    ("ST-CNN, projective", "CNN", "projective", ("0.8", "0.6", "0.8", "1.3")),
    ("ST-CNN, thin plate spline", "CNN", "tps", ("0.7", "0.5", "0.8", "1.1")),
)
_TRANSFORMERS = Table(
    name="distorted digits",
    subject="network",
    columns=("error in %: R", "RTS", "P", "E"),
    source=_SLIDES,
    caption="Published: distorted MNIST, table 1 of Jaderberg et al. (NIPS 2015).",
    rows=tuple(
        Row(name, published, _transformer(network, transform))
        for name, network, transform, published in _ERRORS
    ),
)


def _cells(records: str, data: str) -> Measured:
    """Returns the share of correct objects of a model that ``rpe-d2 fit`` trained."""
    path = "metrics/label_maps/S@0.5"
    return measured(records, path, data=data, seconds=("fit_cpu_seconds",), factor=100.0)


_NUCLEI = Table(
    name="nuclei of DSB 2018",
    subject="method",
    columns=("S at IoU 0.5, %",),
    source=_SPEC,
    caption="Published: the subset and split of DSB 2018 that StarDist uses.",
    rows=(
        Row("Mask R-CNN", ("83.2",), _cells("fit/nuclei_mask_rcnn_[0-9].json", "BBBC038, 59 val")),
        Row("StarDist", ("86.4",), _cells("fit/nuclei_stardist_[0-9].json", "BBBC038, 59 val")),
        Row("PatchPerPix", ("86.8",), CODE),
        Row("pixel embedding", (), _cells("fit/nuclei_[0-9].json", "BBBC038, 59 val")),
    ),
)

_LEAVES = Table(
    name="leaves of CVPPP A1",
    subject="method",
    columns=("symmetric best Dice, %", "error of the count"),
    source=_SPEC,
    caption="Published: CVPPP A1.",
    rows=(
        Row("Mask2Former", ("89.5", "0.67"), CODE),
        Row("GMT", ("90.1", "0.48"), CODE),
        Row("discriminative loss", ("84.2", "1.0"), DATA),
    ),
)

_WORMS = Table(
    name="worms of BBBC010",
    subject="method",
    columns=("S at IoU 0.5", "mean S, %"),
    source=_SPEC,
    caption="Published: BBBC010.",
    rows=(Row("PatchPerPix", ("96.0", "81.6"), CODE),),
)

TABLES = (
    _STANFORD,
    _RESOLUTIONS,
    _FCN,
    _DECONVNET,
    _TRANSFORMERS,
    _NUCLEI,
    _LEAVES,
    _WORMS,
)
