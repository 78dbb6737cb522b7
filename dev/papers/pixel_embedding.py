"""Tables of recurrent pixel embedding (Kong & Fowlkes, CVPR 2018)."""

from typing import Tuple

from dev.papers.entries import CODE, DATA, TIME, Figure, Measured, Row, Table, measured

_POSTER, _SPEC = "sources/rpe_poster.txt", "spec/rpe.md"
_SHAPES, _NUCLEI = "shapes", "nuclei"
_MASKS = "metrics/proposals_segm"
_VOC, _VOC_PROPOSALS = "paper/rpe_voc.yaml", "paper/rpe_voc_proposals.yaml"
_PFN, _LOSS = "paper/pfn_voc.yaml", "MODEL.RPE.LOSS"


def _recall(records: str, data: str, task: str = _MASKS) -> Measured:
    return measured(records, f"{task}/R50@10", f"{task}/R50@60", data=data)


_PROPOSALS = Table(
    name="proposals on VOC",
    subject="proposals",
    columns=("recall at IoU 0.5 with 10", "60 proposals, %"),
    source=_POSTER,
    caption="Published: VOC 2012 val, the poster's table “Object Proposal detection”.",
    rows=(
        Row("SCG", ("–", "62.4"), CODE),
        Row("MCG", ("–", "65.2"), DATA),
        Row("COB", ("–", "73.8"), DATA),
        Row("inst-DML", ("55.8", "66.7"), DATA),
        Row("pixel embedding", ("76.9", "81.4"), DATA, _VOC_PROPOSALS),
        Row(
            "pixel embedding, our additions",
            (),
            _recall("proposals/rpe_shapes_[0-9].json", _SHAPES),
        ),
        Row(
            "pixel embedding, our additions",
            (),
            _recall("proposals/rpe_nuclei_[0-9].json", _NUCLEI),
        ),
        Row(
            "RPN",
            (),
            _recall(
                "proposals/rpn_shapes_[0-9].json",
                f"{_SHAPES}, filled boxes",
                f"{_MASKS}_of_filled_boxes",
            ),
        ),
    ),
)

_AVERAGE_RECALL = Table(
    name="average recall on VOC",
    subject="proposals",
    columns=("AR with about 11", "18", "61 proposals, %"),
    source=_SPEC,
    caption="Published: VOC 2012 val, slide 71, read off a curve.",
    rows=(Row("pixel embedding", ("56", "58", "61.5"), DATA, _VOC_PROPOSALS),),
)

_INSTANCES = Table(
    name="instances on VOC",
    subject="system",
    columns=("AP<sup>r</sup> at IoU 0.5, mean over classes",),
    source=_POSTER,
    caption="Published: VOC 2012 val, the poster's table “Semantic Instance Detection”.",
    rows=(
        Row("SDS", ("43.8",), DATA, "baselines/sds_voc.yaml"),
        Row("Chen et al.", ("46.3",), CODE),
        Row("PFN", ("58.7",), DATA, _PFN),
        Row("MNC", ("63.5",), DATA, "baselines/mnc_voc.yaml"),
        Row("Li et al. (FCIS)", ("65.7",), DATA, "baselines/fcis_voc.yaml"),
        Row("R2-IOS", ("66.7",), CODE),
        Row("associative embedding", ("35.1",), DATA, _VOC, f"{_LOSS} associative"),
        Row("inst-DML", ("62.1",), DATA, _VOC, f"{_LOSS} metric_learning"),
        Row("pixel embedding", ("64.5",), DATA, _VOC),
    ),
)

_CLASSES: Tuple[Tuple[str, ...], ...] = (
    ("plane", "58.8", "63.6", "76.4", "87.0", "69.7", "85.9"),
    ("bike", "0.5", "0.3", "15.6", "6.1", "1.2", "10.0"),
    ("bird", "60.1", "61.5", "74.2", "90.3", "78.2", "74.3"),
    ("boat", "34.4", "43.9", "54.1", "67.9", "53.8", "54.6"),
    ("bottle", "29.5", "33.8", "26.3", "48.4", "42.2", "43.7"),
    ("bus", "60.6", "67.3", "73.8", "86.2", "80.1", "81.3"),
    ("car", "40.0", "46.9", "31.4", "68.3", "57.4", "64.1"),
    ("cat", "73.6", "74.4", "92.1", "90.3", "88.8", "86.1"),
    ("chair", "6.5", "8.6", "17.4", "24.5", "16.0", "17.5"),
    ("cow", "52.4", "52.3", "73.7", "84.2", "73.2", "77.5"),
    ("table", "31.7", "31.3", "48.1", "29.6", "57.9", "57.0"),
    ("dog", "62.0", "63.5", "82.2", "91.0", "88.4", "89.2"),
    ("horse", "49.1", "48.8", "81.7", "71.2", "78.9", "77.8"),
    ("motor", "45.6", "47.9", "72.0", "79.9", "80.0", "83.7"),
    ("person", "47.9", "48.3", "48.4", "60.4", "68.0", "67.9"),
    ("plant", "22.6", "26.3", "23.7", "42.4", "28.0", "31.2"),
    ("sheep", "43.5", "40.1", "57.7", "67.4", "61.5", "62.5"),
    ("sofa", "26.9", "33.5", "64.4", "61.7", "61.3", "63.3"),
    ("train", "66.2", "66.7", "88.9", "94.3", "87.5", "88.6"),
    ("tv", "66.1", "67.8", "72.3", "82.1", "70.4", "74.2"),
)
_INSTANCES_BY_CLASS = Table(
    name="instances on VOC by class",
    subject="class",
    columns=("SDS", "Chen et al.", "PFN", "R2-IOS", "inst-DML", "pixel embedding"),
    source=_POSTER,
    caption="Published: VOC 2012 val, AP<sup>r</sup> at IoU 0.5, the same table.",
    rows=tuple(Row(name, figures, DATA) for name, *figures in _CLASSES),
    by_column=True,
    wide=True,
)

_CONTOURS = Table(
    name="contours on BSDS500",
    subject="system",
    columns=("ODS", "OIS", "AP"),
    source=_SPEC,
    caption="Published: BSDS500 test, slide 65, read off curves.",
    rows=(
        Row(
            "pixel embedding",
            ("79.6", "81.4", "84.0"),
            measured(
                "boundary/bsds_[0-9].json",
                *(f"metrics/boundary/{name}" for name in ("ODS", "OIS", "AP")),
                data="BSDS500 val, ResNet-18 from scratch",
            ),
        ),
        Row("COB", ("79.3", "82.0", "85.9"), CODE),
        Row("HED", ("78.0", "79.6", "83.4"), CODE),
        Row("structured edges", ("74.0", "75.8", "78.6"), CODE),
        Row("gPb", ("72.6", "76.0", "72.7"), CODE),
        Row("human", ("80.3", "–", "–"), DATA),
    ),
)


def _loss(row: str) -> Measured:
    """Returns the figures of a loss from the records of dev/embedding_runs.py."""
    folder = "embedding_losses"
    return Measured(
        (
            Figure((f"{folder}/digits_{row}_[0-9].json",), "metrics/best_iou/mean"),
            Figure((f"{folder}/shapes_{row}_[0-9].json",), "metrics/segm/AP50"),
        ),
        "digits, the authors' images; shapes",
    )


_SHAPES_CONFIG = "paper/rpe_shapes.yaml"
_LOSSES = Table(
    name="losses on embeddings",
    subject="`MODEL.RPE.LOSS`",
    columns=("AP<sup>r</sup> at IoU 0.5",),
    source=_POSTER,
    caption="Published: VOC 2012 val, the poster's table “Semantic Instance Detection”.",
    ours=("mean best IoU on digits", "AP50 on shapes"),
    rows=(
        Row("`spherical`", ("64.5",), _loss("spherical"), _SHAPES_CONFIG),
        Row(
            "`metric_learning` (inst-DML)",
            ("62.1",),
            _loss("metric_learning"),
            _SHAPES_CONFIG,
            f"{_LOSS} metric_learning",
        ),
        Row(
            "`associative`", ("35.1",), _loss("associative"), _SHAPES_CONFIG, f"{_LOSS} associative"
        ),
        Row("`proposal_free` (PFN)", ("58.7",), TIME, _PFN),
        Row(
            "`discriminative`",
            (),
            _loss("discriminative"),
            _SHAPES_CONFIG,
            f"{_LOSS} discriminative",
        ),
        Row("`spatial`", (), _loss("spatial"), _SHAPES_CONFIG, f"{_LOSS} spatial"),
        Row("`spherical`, ours without votes", (), _loss("ours"), _SHAPES_CONFIG),
        Row("`spherical`, ours with votes", (), _loss("ours_votes"), _SHAPES_CONFIG),
    ),
)

TABLES = (
    _PROPOSALS,
    _AVERAGE_RECALL,
    _INSTANCES,
    _INSTANCES_BY_CLASS,
    _CONTOURS,
    _LOSSES,
)
