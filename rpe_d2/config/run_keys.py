"""Keys of a run: data, training and evaluation."""

from rpe_d2.utils.images import CHANNELS, parse_channels
from rpe_d2.utils.intensity import INTENSITIES, parse_intensity

from .key import Key, Keys, is_parsed_by


def _top_keys() -> Keys:
    """Keys of the whole run."""
    return {
        "DETERMINISTIC": Key(
            False,
            "Use deterministic algorithms where torch has them, which is slower on GPUs. Two runs "
            "with the same seed on a CPU are then bitwise equal.",
        ),
        "WANDB_PROJECT": Key(
            "",
            "Send losses and scores to this project of Weights & Biases, which needs the package "
            "`wandb`. Empty: send nothing.",
            unit="name of a project",
        ),
    }


def _datasets_keys() -> Keys:
    """Your own data, and public data sets by the folder they are in. Each is registered by name."""
    return {
        "COCO_JSONS": Key(
            [],
            "COCO-format data sets, each as `name=path.json:image_root`. The image root defaults "
            "to the folder of the JSON file. `name_sem_seg` is registered as well, with semantic "
            "maps painted from the masks and background as class 0.",
            unit="entries name=path.json:image_root",
        ),
        "LABEL_DIRS": Key(
            [],
            "Folders of images and instance label maps, each as `name=images/:labels/`. In a label "
            "map, 0 is background and each object has its own number. Endings such as `_masks` are "
            "ignored when names are matched. Classes come from a third part, a CSV file with the "
            "columns file, id and class, or a folder of class maps: "
            "`name=images/:labels/:classes`.",
            unit="entries name=images/:labels/",
        ),
        "SEM_SEG_DIRS": Key(
            [],
            "Folders of images and label maps in the format of ADE20K, each as "
            "`name=images/:labels/`. Label maps are PNG, TIFF or NPY files with the names of the "
            "images; their pixels are classes of 8, 16 or 32 bits or indices of a palette. Class "
            "names come from a text file with one name a line: "
            "`name=images/:labels/:classes.txt`.",
            unit="entries name=images/:labels/",
        ),
        "COARSE_DIRS": Key(
            [],
            "Predictions of another model, which `LabelPropagationNet` or `SPNRefiner` refines, "
            "each as `name=folder/` with the name of a data set. For every image there is an NPZ "
            "file of the same stem with `probabilities`, (K, H, W) floating point, or uint8 in "
            "which 255 is 1.",
            unit="entries name=folder/",
        ),
        "FRAME_PAIRS": Key(
            [],
            "Folders of pictures of which `TemporalPropagationNet` gets pairs of frames, each as "
            "`name=images/`, or as `name=images/:labels/` with label maps of the regions that move "
            "against each other. 255 is unknown.",
            unit="entries name=images/:labels/",
        ),
        **{
            f"PROPOSAL_MASKS_{part}": Key(
                [],
                f"Region proposals of the data sets of `{part}`, which `PrecomputedMaskProposals` "
                "takes, each as `name=path.json` with the name of a data set. The files have "
                "COCO's results format, with masks and scores; `rpe-d2 precompute-proposals` "
                "converts those of MCG and COB. `PRECOMPUTED_PROPOSAL_TOPK_" + part + "` limits "
                "their number.",
                unit="entries name=path.json",
            )
            for part in ("TRAIN", "TEST")
        },
        "DIGITS": Key(
            "",
            "File with `images` (N, 28, 28) uint8 and `labels` (N,), such as MNIST's digits, of "
            "which `digits_train` and `digits_val` are rendered. Empty: scikit-learn's digits.",
            unit="an .npz file",
        ),
        "DIGITS_AUTHORS": Key(
            "",
            "MATLAB file with the images of digits of Kong & Fowlkes, registered as "
            "`digits_authors`.",
            unit="a .mat file",
        ),
        "HELEN": Key(
            "",
            "Folder of the Helen face parsing data, registered as `helen_train`, `helen_val` and "
            "`helen_test`.",
            unit="a folder",
        ),
        "VOC": Key(
            "",
            "Folder with `VOCdevkit/VOC2012` (or `VOC2012` itself) and, in "
            "`benchmark_RELEASE/dataset` or `sbd`, SBD. Registers `voc_2012_train`, "
            "`voc_2012_val`, `voc_2012_sbd_train`, `sbd_train` and `sbd_val`, each also with "
            "semantic maps as `NAME_sem_seg`.",
            unit="a folder",
        ),
        "BSDS": Key(
            "",
            "Folder of BSDS500. Those of `bsds_train`, `bsds_val` and `bsds_test` that are "
            "present are registered.",
            unit="a folder",
        ),
    }


def _input_keys() -> Keys:
    """Data augmentation and the dataset mapper."""
    return {
        "DATASET_MAPPER_NAME": Key(
            "",
            "Name of a registered dataset mapper for training, as in Mask2Former. Empty: the "
            "mapper that the model declares, or else `PixelLabelMapper` with `MODEL.MASK_ON` and "
            "`ImageMapper` without.",
            unit="name of a dataset mapper",
        ),
        "INTENSITY": Key(
            "auto",
            "How intensities become 0 to 255, in training, evaluation and prediction alike. "
            "`auto`: 8-bit images are used as they are; in others, integer or floating point, the "
            "0.1 and 99.8 percentiles of the whole image become 0 and 255. `dtype`: the range of "
            "the number type, 0 to 1 for floating point. `percentile:LO,HI`: these percentiles "
            "of each image. `LO,HI`: these intensities.",
            unit=INTENSITIES,
            is_allowed=is_parsed_by(parse_intensity),
        ),
        "CHANNELS": Key(
            "",
            "Channels of an image that are used: one index, counted from 0; three indices, as "
            "`0,1,1`, for red, green and blue; or `mean`, the average of all. Empty: images have "
            "1 or 3 channels, besides opacity, which is dropped.",
            unit=CHANNELS,
            is_allowed=is_parsed_by(parse_channels),
        ),
        "PLANE": Key(
            -1,
            "Plane (page, slice or frame) that is used of files that have several, counted from "
            "0. -1: a file name must say it, as in `name.tif[3]`; demo and visualize process every "
            "plane as an image of its own.",
            low=-1,
            unit="planes",
        ),
        "SCALE": Key(
            0.0,
            "Resize all images by this factor, in training, evaluation and prediction alike, "
            "instead of to `MIN_SIZE_TRAIN` and `MIN_SIZE_TEST`. Pixels then keep their size: "
            "objects are not larger because an image is smaller. 0: off.",
            low=0,
            high=16,
            unit="factors",
        ),
        "OBJECT_CROP": Key(
            0.0,
            "Crop training images with semantic maps to a random object, a connected region of one "
            "class, before all else. The side of the crop is this multiple of the object's longer "
            "side; DeconvNet has 1.2. Other classes in it become background, class 0. 0: off.",
            low=0,
            high=16,
        ),
        "QUARTER_TURNS": Key(
            False,
            "Rotate training images by a random multiple of 90 degrees, for images without an "
            "upright orientation.",
        ),
        "COLOR_JITTER": Key(
            0.0,
            "Scale contrast, brightness and saturation of training images by random factors "
            "between 1 minus and 1 plus this value. 0: no jitter.",
            low=0,
            below=1,
        ),
        "SCALE_JITTER": Key(
            [],
            "Resize training images by a random factor between these two, after Detectron2's own "
            "resizing. With `INPUT.CROP.TYPE` `absolute`, crops are larger for smaller factors, so "
            "that inputs have the same size. Empty: no jitter.",
            above=0,
            unit="factors",
            elements=float,
        ),
        "ROTATION": Key(
            0.0,
            "Rotate training images by a random angle of at most this many degrees about their "
            "center. What enters from outside is black background. 0: no rotation.",
            low=0,
            high=180,
            unit="degrees",
        ),
        "GAMMA": Key(
            0.0,
            "Raise intensities of training images, scaled to 0-1, to a random power between 1 "
            "minus and 1 plus this value. 0: no change.",
            low=0,
            below=1,
        ),
    }


def _dataloader_keys() -> Keys:
    """Data loading."""
    return {
        "MAX_UNREADABLE": Key(
            10,
            "Images or annotations that cannot be read are replaced in training, each with a "
            "warning. More different ones than this end the run.",
            low=0,
            unit="images",
        ),
    }


def _solver_keys() -> Keys:
    """Optimization and early stopping."""
    return {
        "OPTIMIZER": Key(
            "SGD",
            "`SGD` is Detectron2's. `ADAMW` decouples the weight decay; `SOLVER.MOMENTUM` and "
            "`SOLVER.NESTEROV` do not apply to it.",
            choices=("SGD", "ADAMW"),
        ),
        "BACKBONE_MULTIPLIER": Key(
            1.0,
            "Learning rate of the backbone, relative to that of the other parts, as in "
            "Mask2Former. 0: it is not trained.",
            low=0,
        ),
        "POLY_LR_POWER": Key(
            0.9,
            "Exponent of `SOLVER.LR_SCHEDULER_NAME WarmupPolyLR`, the schedule (1 - iteration / "
            "MAX_ITER)^p of Detectron2's DeepLab project.",
            above=0,
        ),
        "ACCUMULATE_STEPS": Key(
            1,
            "Number of batches of `SOLVER.IMS_PER_BATCH` images whose mean gradient makes one "
            "step. `SOLVER.MAX_ITER` counts steps.",
            low=1,
        ),
        "MAX_NONFINITE_STEPS": Key(
            10,
            "Steps with infinite or NaN losses or gradients that are skipped, each with a "
            "warning. One more ends the run.",
            low=0,
            unit="steps",
        ),
        "EARLY_STOPPING_PATIENCE": Key(
            0,
            "Training ends after this many evaluations without a better `TEST.BEST_METRIC`. 0: "
            "never.",
            low=0,
            unit="evaluations",
        ),
        "FIND_UNUSED_PARAMETERS": Key(
            False,
            "In distributed training, look for parameters without gradient in every step, which "
            "takes time. It is needed where some outputs of the backbone are unused, such as the "
            "coarse levels of an FPN under DeepMask and InstanceFCN.",
        ),
    }


def _amp_keys() -> Keys:
    """Mixed precision."""
    return {
        "PRECISION": Key(
            "float16",
            "Data type under `SOLVER.AMP.ENABLED`. `float16` needs CUDA and uses a loss scaler; "
            "on a CPU training stays in float32. `bfloat16` also works on a CPU and is faster "
            "there if the CPU has AVX512-BF16 or AMX.",
            choices=("float16", "bfloat16"),
        ),
    }


def _ema_keys() -> Keys:
    """Exponential moving average of the weights."""
    return {
        "ENABLED": Key(
            False,
            "Evaluate weights averaged over about the last 1 / (1 - DECAY) steps, and save them "
            "beside the trained ones.",
        ),
        "DECAY": Key(
            0.999,
            "Weight of the old average in the new one. After n steps it is at most (1 + n) / (10 "
            "+ n).",
            above=0,
            below=1,
        ),
    }


def _test_keys() -> Keys:
    """Evaluation and the choice of the best checkpoint."""
    return {
        "PROPOSALS": Key(
            False,
            "Also evaluate class-agnostic proposals with `MaskProposalEvaluator`: average recall "
            "at 1, 10, 100 and 1,000. This is always done for a `ProposalNetwork`.",
        ),
        "BOUNDARIES": Key(
            False,
            "Also evaluate the quality of mask boundaries with `BoundaryAPEvaluator`: Boundary AP "
            "of instances and Boundary IoU of semantic maps, at 2 % of the image diagonal, 2 "
            "pixels and 1 pixel.",
        ),
        "VOC_AP": Key(
            False,
            "Also evaluate AP^r, the average precision of PASCAL VOC with the IoU of masks, with "
            "`VOCInstanceEvaluator`. This is always done for the data sets of `DATASETS.VOC`.",
        ),
        "FIELD_METRICS": Key(
            False,
            "Also evaluate instances as label maps with `FieldMetricsEvaluator`: S, F1, PQ, AJI, "
            "SBD and counts. This is always done for the data sets of `DATASETS.LABEL_DIRS`.",
        ),
        "MIN_SCORE": Key(
            -1.0,
            "Instances with a lower score are left out of pictures, label maps and "
            "`FIELD_METRICS`, but not of AP. Negative: the model's own value, for most models 0.5.",
            low=-1,
            high=1,
        ),
        "TOUCHING_INSTANCES": Key(
            False,
            "Also evaluate separately the instances whose mask, dilated by 2 pixels, overlaps "
            "another mask (`segm_touching`).",
        ),
        "BOUNDARY_THRESHOLDS": Key(
            99,
            "Number of thresholds at which `BSDSBoundaryEvaluator` compares predicted contours "
            "with the annotated ones. The BSDS benchmark uses 99; fewer are faster.",
            low=1,
            unit="thresholds",
        ),
        "BEST_METRIC": Key(
            "",
            "Keep the weights with the best value of this metric in `model_best.pth`: `segm/AP`, "
            "`validation/total_loss` and so on, or `NAME/segm/AP` with several data sets. Empty: "
            "keep none.",
            unit="name of a metric",
        ),
        "VALIDATION_LOSS": Key(
            False,
            "In every evaluation, also compute the training losses on the first data set of "
            "`DATASETS.TEST`.",
        ),
    }


def _dense_crf_keys() -> Keys:
    """Fully connected CRF on semantic scores, for comparison. It needs the package pydensecrf2."""
    return {
        "ENABLED": Key(False, "Refine semantic scores with the CRF before they are evaluated."),
        "ITERATIONS": Key(5, "Iterations of mean-field inference.", low=0, unit="iterations"),
        "POSITION": Key(
            80.0,
            "Standard deviation of the appearance kernel in the image plane.",
            above=0,
            unit="pixels",
        ),
        "COLOR": Key(
            13.0,
            "Standard deviation of the appearance kernel in each color channel of 0–255.",
            above=0,
            unit="gray levels",
        ),
        "WEIGHT": Key(10.0, "Weight of the appearance kernel.", low=0),
    }


def _superpixel_keys() -> Keys:
    """Vote of superpixels on semantic scores, as in Farabet et al. (PAMI 2013)."""
    return {
        "ENABLED": Key(
            False,
            "Give all pixels of a superpixel the mean of their class probabilities before semantic "
            "maps are evaluated. Superpixels are those of Felzenszwalb & Huttenlocher.",
        ),
        "SCALE": Key(
            100.0, "Scale of observation; with a larger one, superpixels are larger.", above=0
        ),
        "SIGMA": Key(
            0.8,
            "Standard deviation of the Gaussian that smooths the image before.",
            low=0,
            high=100,
            unit="pixels",
        ),
        "MIN_SIZE": Key(
            50, "Smallest area of a superpixel; smaller ones are merged.", low=1, unit="pixels"
        ),
    }


RUN_NODES = {
    "": _top_keys,
    "DATASETS": _datasets_keys,
    "INPUT": _input_keys,
    "DATALOADER": _dataloader_keys,
    "SOLVER": _solver_keys,
    "SOLVER.AMP": _amp_keys,
    "SOLVER.EMA": _ema_keys,
    "TEST": _test_keys,
    "TEST.DENSE_CRF": _dense_crf_keys,
    "TEST.SUPERPIXELS": _superpixel_keys,
}
