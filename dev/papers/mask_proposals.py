"""Tables of systems that propose masks: DeepMask, SharpMask, InstanceFCN and classical methods."""

from typing import Dict, Sequence, Tuple

from dev.papers.entries import CODE, DATA, GPU, Measured, Row, Table, measured

_SLIDES, _SPEC = "sources/instance_segmentation_slides.txt", "spec/baselines.md"
_COCO = "COCO val, first 5,000 images"
_VOC = "VOC 2012 val"
_DEEPMASK = "paper/deepmask_coco.yaml"
_VARIANT = "baselines/deepmask_coco.yaml"  # its comments have the overrides of the variants
_INSTANCE_FCN = "paper/instance_fcn_voc.yaml"
_AR = ("AR@10", "AR@100", "AR@1000")

# The records of each system, of dev/proposal_runs.py if it has a variant, and its data.
_VARIANTS = "mask_proposals/variants/"
_RECORDS: Dict[str, Tuple[str, str]] = {
    "edge_boxes": ("proposals/classical/edge_boxes_shapes_1.json", "shapes"),
    "selective_search": ("proposals/classical/selective_search_shapes_1.json", "shapes"),
    "deepmask": (f"{_VARIANTS}deepmask_[0-9].json", "shapes"),
    "alternate": (f"{_VARIANTS}deepmask_alternate_[0-9].json", "shapes"),
    "patches": (f"{_VARIANTS}deepmask_patches_[0-9].json", "shapes"),
    "half": (f"{_VARIANTS}deepmask_half_[0-9].json", "shapes, learned from 2 of 4 classes"),
    "half_masks": (
        f"{_VARIANTS}deepmask_half_masks_[0-9].json",
        "shapes, masks learned from 2 of 4 classes",
    ),
    "zoom": (f"{_VARIANTS}deepmask_zoom_[0-9].json", "shapes"),
    "full": (f"{_VARIANTS}deepmask_full_[0-9].json", "shapes"),
    "sharpmask": ("mask_proposals/sharpmask_shapes_1.json", "shapes"),
    "instance_fcn": (f"{_VARIANTS}instance_fcn_[0-9].json", "shapes"),
    "instance_fcn_patches": (f"{_VARIANTS}instance_fcn_patches_[0-9].json", "shapes"),
    "rpe": ("mask_proposals/rpe_shapes_1.json", "shapes"),
}
# Records that are shown before dev/proposal_runs.py has run.
_BEFORE = {
    "deepmask": "mask_proposals/deepmask_shapes_1.json",
    "instance_fcn": "mask_proposals/instance_fcn_shapes_1.json",
}
_BOXES_ALONE = ("edge_boxes", "selective_search")  # their masks are filled boxes
_BOXES, _MASKS = "proposals_bbox", "proposals_segm"


def _ours(system: str, names: Sequence[str] = _AR, task: str = _MASKS) -> Measured:
    """Returns the figures of a system on shapes."""
    records, data = _RECORDS[system]
    globs = [records]
    if system in _BEFORE and "AUCs" not in names:  # which older records lack
        globs.append(_BEFORE[system])
    if system in _BOXES_ALONE and task == _MASKS:
        task, data = f"{_MASKS}_of_filled_boxes", f"{data}, filled boxes"
    training = f"{_VARIANTS}training/{records.rpartition('/')[2]}" if "patches" in system else ""
    paths = (f"metrics/{task}/{name}" for name in names)
    return measured(tuple(globs), *paths, data=data, training=training)


def _mnc() -> Measured:
    """Returns the recall of MNC's masks from the comparison of complete systems."""
    paths = (f"rows/=mnc_shapes/proposals/{name}" for name in _AR)
    training = "compared/mnc_shapes_1.json"
    return measured("compare_shapes.json", *paths, data="shapes", training=training)


def _boxes(system: str) -> Measured:
    return _ours(system, (*_AR, "AUC"), _BOXES)


_BOX_PROPOSALS = Table(
    name="boxes on COCO",
    subject="proposals",
    columns=("boxes: AR@10", "100", "1000", "AUC"),
    source=_SLIDES,
    caption=f"Published: {_COCO}, table of Pinheiro et al. (NIPS 2015).",
    rows=(
        Row("EdgeBoxes", ("7.4", "17.8", "33.8", "13.9"), _boxes("edge_boxes")),
        Row("Geodesic", ("4.0", "18.0", "35.9", "12.6"), CODE),
        Row("Rigor", ("–", "13.3", "33.7", "10.1"), CODE),
        Row("selective search", ("5.2", "16.3", "35.7", "12.6"), _boxes("selective_search")),
        Row("MCG", ("10.1", "24.6", "39.8", "18.0"), DATA),
        Row("DeepMask20", ("13.9", "28.6", "43.1", "21.7"), _boxes("half"), _VARIANT),
        Row("DeepMask20*", ("15.2", "30.6", "43.2", "22.8"), _boxes("half_masks"), _VARIANT),
        Row("DeepMaskZoom", ("15.0", "32.6", "48.2", "24.2"), _boxes("zoom"), _VARIANT),
        Row("DeepMaskFull", ("14.9", "31.0", "44.2", "23.1"), _boxes("full"), _VARIANT),
        Row("DeepMask", ("15.3", "31.3", "44.6", "23.3"), _boxes("deepmask"), _DEEPMASK),
    ),
)


def _masks(system: str) -> Measured:
    return _ours(system, (*_AR, "AUC"))


_MASK_PROPOSALS = Table(
    name="masks on COCO",
    subject="proposals",
    columns=("masks: AR@10", "100", "1000", "AUC"),
    source=_SLIDES,
    caption=f"Published: {_COCO}, table of Pinheiro et al. (NIPS 2015).",
    rows=(
        Row("Geodesic", ("2.3", "12.3", "25.3", "8.5"), CODE),
        Row("Rigor", ("–", "9.4", "25.3", "7.4"), CODE),
        Row("selective search", ("2.5", "9.5", "23.0", "7.4"), _masks("selective_search")),
        Row("MCG", ("7.7", "18.6", "29.9", "13.7"), DATA),
        Row("DeepMask20", ("10.9", "21.5", "31.4", "16.4"), _masks("half"), _VARIANT),
        Row("DeepMask20*", ("12.3", "23.3", "31.4", "17.5"), _masks("half_masks"), _VARIANT),
        Row("DeepMaskZoom", ("12.7", "26.1", "36.6", "19.4"), _masks("zoom"), _VARIANT),
        Row("DeepMaskFull", ("11.8", "23.5", "32.3", "17.6"), _masks("full"), _VARIANT),
        Row("DeepMask", ("12.6", "24.5", "33.1", "18.3"), _masks("deepmask"), _DEEPMASK),
        Row("DeepMask, alternate steps", (), _masks("alternate"), _DEEPMASK),
        Row("pixel embedding, our additions", (), _masks("rpe")),
    ),
)


def _sizes(system: str) -> Measured:
    return _ours(system, ("AUCs", "AUCm", "AUCl"))


_BY_SIZE = Table(
    name="masks on COCO by size",
    subject="proposals",
    columns=("masks, AUC: small", "medium", "large objects"),
    source=_SLIDES,
    caption=f"Published: {_COCO}, table of Pinheiro et al. (NIPS 2015).",
    rows=(
        Row("Geodesic", ("1.3", "8.6", "20.5"), CODE),
        Row("Rigor", ("2.2", "6.0", "17.8"), CODE),
        Row("selective search", ("0.6", "5.5", "21.4"), _sizes("selective_search")),
        Row("MCG", ("3.1", "12.9", "32.4"), DATA),
        Row("DeepMask20", ("2.0", "22.7", "31.7"), _sizes("half"), _VARIANT),
        Row("DeepMask20*", ("2.0", "25.7", "32.1"), _sizes("half_masks"), _VARIANT),
        Row("DeepMaskZoom", ("6.8", "26.3", "30.8"), _sizes("zoom"), _VARIANT),
        Row("DeepMaskFull", ("2.0", "24.4", "34.2"), _sizes("full"), _VARIANT),
        Row("DeepMask", ("2.3", "26.6", "33.6"), _sizes("deepmask"), _DEEPMASK),
    ),
)

_RELEASED = Table(
    name="SharpMask on COCO",
    subject="proposals",
    columns=("masks: AR@10", "100", "1000", "AUC"),
    source=_SPEC,
    caption="Published: COCO val, first 5,000 images, models that the authors released.",
    rows=(
        Row("DeepMask", ("14.4", "25.8", "33.1", "19.4"), _masks("deepmask"), _DEEPMASK),
        Row("SharpMask", ("15.6", "27.6", "35.5", "20.9"), _masks("sharpmask")),
        Row(
            "SharpMaskZoom",
            ("–", "30.3", "39.2", "–"),
            DATA,
            "baselines/sharpmask_coco.yaml",
        ),
    ),
)

_TRAINING = Table(
    name="training of InstanceFCN",
    subject="method, training, test",
    columns=("masks: AR@10", "100", "1000"),
    source=_SLIDES,
    caption=f"Published: {_VOC}, table 2 of Dai et al. (ECCV 2016).",
    rows=(
        Row("~DeepMask, crops, sliding", ("31.2", "42.9", "47.0"), _ours("patches"), _DEEPMASK),
        Row(
            "InstanceFCN, crops, fully convolutional",
            ("37.4", "48.4", "51.4"),
            _ours("instance_fcn_patches"),
            _INSTANCE_FCN,
        ),
        Row(
            "InstanceFCN, fully convolutional",
            ("38.9", "49.7", "52.6"),
            _ours("instance_fcn"),
            _INSTANCE_FCN,
        ),
        Row("DeepMask, fully convolutional", (), _ours("deepmask"), _DEEPMASK),
    ),
)

_STATE_OF_THE_ART = Table(
    name="masks on VOC",
    subject="proposals",
    columns=("masks: AR@10", "100", "1000"),
    source=_SLIDES,
    caption=f"Published: {_VOC}, table 3 of Dai et al. (ECCV 2016).",
    rows=(
        Row("selective search", ("7.0", "23.5", "43.3"), _ours("selective_search")),
        Row("MCG", ("18.9", "36.8", "49.5"), DATA),
        Row("~DeepMask", ("31.2", "42.9", "47.0"), _ours("patches"), _DEEPMASK),
        Row("MNC", ("33.4", "48.5", "53.8"), _mnc()),
        Row("InstanceFCN", ("38.9", "49.7", "52.6"), _ours("instance_fcn"), _INSTANCE_FCN),
    ),
)

_INSTANCE_FCN_COCO = Table(
    name="InstanceFCN on COCO",
    subject="proposals",
    columns=("masks: AR@10", "100", "1000"),
    source=_SLIDES,
    caption=f"Published: {_COCO}, table 5 of Dai et al. (ECCV 2016).",
    rows=(
        Row("GOP", ("2.3", "12.3", "25.3"), CODE),
        Row("Rigor", ("–", "9.4", "25.3"), CODE),
        Row("selective search", ("2.5", "9.5", "23.0"), _ours("selective_search")),
        Row("MCG", ("7.7", "18.6", "29.9"), DATA),
        Row("DeepMask", ("12.6", "24.5", "33.1"), _ours("deepmask"), _DEEPMASK),
        Row("DeepMaskZoom", ("12.7", "26.1", "36.6"), _ours("zoom"), _VARIANT),
        Row("InstanceFCN", ("16.6", "31.7", "39.2"), _ours("instance_fcn")),
    ),
)

_SYSTEMS = Table(
    name="complete systems on VOC",
    subject="system",
    columns=("mAP<sup>r</sup> at IoU 0.5", "0.7"),
    source=_SPEC,
    caption="Published: VOC 2012 val, in the papers of the systems.",
    rows=(
        Row("MNC, features not shared", ("60.2", "–"), CODE),
        Row("MNC, features shared", ("60.5", "–"), CODE),
        Row(
            "MNC, three stages",
            ("62.6", "–"),
            DATA,
            "baselines/mnc_voc.yaml",
            "MODEL.MNC.NUM_STAGES 3",
        ),
        Row("MNC, five stages", ("63.5", "41.5"), DATA, "baselines/mnc_voc.yaml"),
        Row("FCIS", ("66.0", "51.9"), DATA, "baselines/fcis_voc.yaml"),
        Row("Hypercolumns", ("60.0", "40.4"), DATA, "baselines/hypercolumn_voc.yaml"),
    ),
)

_SECONDS = Table(
    name="time of systems",
    subject="system",
    columns=("seconds for an image",),
    source=_SPEC,
    caption="Published: GPUs of their time, in the papers of the systems.",
    rows=(
        Row("DeepMask, release", ("0.46",), GPU, _DEEPMASK),
        Row("SharpMask", ("0.76",), GPU, "baselines/sharpmask_coco.yaml"),
        Row("InstanceFCN", ("1.5",), GPU, _INSTANCE_FCN),
        Row("MNC", ("0.36",), GPU, "paper/mnc_coco.yaml"),
        Row("FCIS", ("0.23",), GPU, "baselines/fcis_voc.yaml"),
        Row("FCN-8s", ("0.175",), GPU, "semantic/fcn_8s_voc.yaml"),
    ),
)

TABLES = (
    _BOX_PROPOSALS,
    _MASK_PROPOSALS,
    _BY_SIZE,
    _RELEASED,
    _TRAINING,
    _STATE_OF_THE_ART,
    _INSTANCE_FCN_COCO,
    _SYSTEMS,
    _SECONDS,
)
