"""Keys of the pixel embeddings: network, losses, mean shift, instances and proposals."""

from .key import NORMS, Key, Keys


def _rpe_keys() -> Keys:
    """Pixel embeddings (`PixelEmbeddingNet`): the network, its losses and the instances."""
    return {**_network_keys(), **_loss_keys(), **_instance_keys()}


def _network_keys() -> Keys:
    return {
        "IN_FEATURES": Key(
            [],
            "Outputs of the backbone that enter the embedding head. Empty: all.",
            unit="outputs of the backbone",
        ),
        "STRIDE": Key(4, "Stride of the embedding map.", choices=(1, 2, 4, 8), unit="pixels"),
        "CONV_DIM": Key(
            128, "Channels of the convolutions of the head.", low=1, high=65536, unit="channels"
        ),
        "NUM_CONVS": Key(
            2,
            "Number of 3x3 convolutions that all predictions share. Each prediction has one more "
            "of its own at the output stride.",
            low=0,
            high=100,
        ),
        "NORM": Key("GN", "Normalization in the head.", choices=NORMS),
        "NUM_CLASSES": Key(
            80,
            "Number of classes without background. It must equal that of the data set.",
            low=1,
            high=1000000,
            unit="classes",
        ),
        "EMBEDDING_DIM": Key(
            16,
            "Dimension D of the embeddings, which lie on the unit sphere with LOSS `spherical`.",
            low=1,
            high=4096,
        ),
        "COORDINATES": Key(False, "Append the image coordinates, scaled to -1…1, to the features."),
        "VOTES": Key(
            True,
            "Predict for each pixel the center of its instance. Mean shift then moves embeddings "
            "and votes together with a joint kernel; it needs "
            "`MODEL.MEAN_SHIFT.SPATIAL_BANDWIDTH`.",
        ),
        "VOTE_UNIT": Key(
            4.0,
            "Unit of the predicted votes. A checkpoint is valid only for the value it was trained "
            "with.",
            above=0,
            unit="pixels",
        ),
        "MAX_SIZE": Key(
            256.0,
            "Largest instance size, the square root of the area, that can be predicted with "
            "`MODEL.MEAN_SHIFT.RELATIVE_BANDWIDTH`. The smallest is 256 divided by it. With LOSS "
            "`spatial` or `proposal_free`, the unit of offsets from a pixel. A checkpoint is valid "
            "only for the value it was trained with.",
            low=32,
            unit="pixels",
        ),
    }


def _loss_keys() -> Keys:
    return {
        "LOSS": Key(
            "spherical",
            "Embeddings, loss and grouping: `spherical` is the paper's method. With those of other "
            "papers (`discriminative`: De Brabandere 2017, `associative`: Newell 2017, "
            "`metric_learning`: Fathi 2017, `spatial`: Neven 2019, `proposal_free`: Liang 2015), "
            "keys that they do not use are ignored, and named in the log.",
            choices=(
                *("spherical", "discriminative", "associative", "metric_learning", "spatial"),
                "proposal_free",
            ),
        ),
        "MARGIN": Key(
            0.5,
            "Margin alpha of the pair loss: pixels of different instances repel each other where "
            "their calibrated similarity (1 + cos) / 2 exceeds it.",
            low=0,
            high=1,
        ),
        "PAIR_LOSS_FORM": Key(
            "linear",
            "Form of the pair loss; `linear` is the paper's. See `rpe_d2.ops.pair_loss`.",
            choices=("linear", "squared_hinge", "released"),
        ),
        "PAIR_LOSS_NORMALIZATION": Key(
            "per_term",
            "`joint`: one mean over all pairs, as in the paper. `per_term`: one mean over the "
            "pairs of the same instance and one over those of different instances.",
            choices=("joint", "per_term"),
        ),
        "POSITIVE_WEIGHT": Key(1.0, "Weight of same-instance pairs in the pair loss.", low=0),
        "NEGATIVE_WEIGHT": Key(1.0, "Weight of different-instance pairs in the pair loss.", low=0),
        "NEGATIVE_RADIUS": Key(
            0.0,
            "Pixels of different instances repel each other only up to this distance. 0: at any "
            "distance.",
            low=0,
            unit="pixels",
        ),
        "TRAIN_POINTS": Key(
            1024,
            "Pixels of an image that enter the pair loss, and with `MEAN_SHIFT.TRAIN_KEYS` 0 the "
            "training loops.",
            low=1,
            unit="pixels",
        ),
        "SAMPLING": Key(
            "instances",
            "How these pixels are sampled. `instances`: the same number from each instance. "
            "`contact`: twice as many from instances with others within 8 pixels, half of them "
            "there. `uniform`: all pixels with the same probability, as in the authors' release. "
            "With `MEAN_SHIFT.TRAIN_KEYS`, every loss has a sample of its own.",
            choices=("instances", "contact", "uniform"),
        ),
        "LOOP_WEIGHTS": Key(
            [],
            "Weights of the losses before the first training loop and after each, TRAIN_LOOPS + 1 "
            "numbers whose sum is scaled to 1. Empty: equal weights.",
            low=0,
            unit="weights",
            elements=float,
        ),
        "BACKGROUND": Key(
            "exclude",
            "`exclude`: the pair loss ignores background. `group`: background is one more group "
            "in the loss and, with FOREGROUND `vote`, in the grouping.",
            choices=("exclude", "group"),
        ),
        "PAIR_LOSS_WEIGHT": Key(
            1.0,
            "Weight of the pair loss, averaged over loop 0 and all training loops, or of the loss "
            "that LOSS names.",
            low=0,
        ),
        "VOTE_LOSS_WEIGHT": Key(
            0.1,
            "Weight of the smooth L1 loss of the votes, in units of the spatial bandwidth and "
            "averaged over the same loops. It is also the weight of the smooth L1 loss of the "
            "logarithm of the predicted sizes.",
            low=0,
        ),
        "SEM_SEG_LOSS_WEIGHT": Key(1.0, "Weight of the cross-entropy of the class scores.", low=0),
        "QUALITY_LOSS_WEIGHT": Key(
            1.0, "Weight of the cross-entropy of the estimated mask IoU.", low=0
        ),
        "SEM_SEG_LOSS_STRIDE": Key(
            1,
            "Class scores are upsampled to this stride for the cross-entropy. It divides STRIDE.",
            choices=(1, 2, 4, 8),
            unit="pixels",
        ),
        "QUALITY": Key(
            True,
            "Score instances by their class probability times a learned estimate of their mask "
            "IoU. False: by the class probability only.",
        ),
        "QUALITY_IMAGES": Key(
            2,
            "Number of images of a batch whose instances are decoded to train the quality head and "
            "the group head. 0: all. The group head is also trained on the true instances of all "
            "images.",
            low=0,
            unit="images",
        ),
        "GROUP_CLASSES": Key(
            "vote",
            "Class probabilities of an instance. `vote`: the mean over its pixels. `head`: those "
            "of a head that sees the features of the whole group. `product`: both.",
            choices=("vote", "head", "product"),
        ),
        "GROUP_POOLING": Key(
            "grid",
            "Features of the group head. `mean`: the mean over the mask. `attention`: each class "
            "also weights the pixels of the mask by a learned query. `grid`: also the mask and the "
            "features under it on 8 x 8 cells of its box.",
            choices=("mean", "attention", "grid"),
        ),
    }


def _instance_keys() -> Keys:
    return {
        "GROUPING": Key(
            "mean_shift",
            "How pixels are grouped into instances. `mean_shift` means the grouping of LOSS, if "
            "that is not `spherical`. Two values are for comparison: `components` "
            "uses connected components of the class map without embeddings, and `kmeans` knows "
            "the true number of instances, in evaluations of annotated data.",
            choices=("mean_shift", "components", "kmeans"),
        ),
        "FOREGROUND": Key(
            "classifier",
            "`classifier`: pixels that the class scores classify as foreground are grouped, and "
            "masks are multiplied by the foreground probability. `vote`: all pixels are grouped, "
            "as in the paper, and the mean class scores of a group decide whether it is "
            "background; it needs BACKGROUND `group`.",
            choices=("classifier", "vote"),
        ),
        "FOREGROUND_THRESHOLD": Key(
            0.5,
            "Pixels with at least this probability of being foreground are grouped.",
            low=0.1,
            high=1,
        ),
        "MERGE_COSINE": Key(
            0.9,
            "Shifted pixels whose cosine similarity to the center of a mode is at least this "
            "belong to it.",
            low=-1,
            high=1,
        ),
        "SPLIT_COMPONENTS": Key(
            False, "Make every connected component of a group a separate instance."
        ),
        "MIN_AREA": Key(16, "Instances with fewer pixels are dropped.", low=0, unit="pixels"),
        "MAX_GROUPS": Key(
            500,
            "Only this many of the largest groups of an image are scored, which bounds time and "
            "memory.",
            low=1,
            unit="groups",
        ),
        "SCORE_THRESH_TEST": Key(
            0.0,
            "Instances with a lower score are dropped. `MODEL.ROI_HEADS.SCORE_THRESH_TEST`, which "
            "Detectron2's demo sets, also applies where it is not at its default, 0.05.",
            low=0,
            high=1,
        ),
        "REFINE": Key(
            "",
            "`spn`: refine the soft masks of the instances by the propagation of `MODEL.SPN`. "
            "Proposals are not refined. Empty: no refinement.",
            choices=("", "spn"),
        ),
        "MASK_THRESHOLD": Key(
            0.5, "Threshold that turns soft masks into binary ones.", above=0, high=0.99
        ),
        "RETURN_PROPOSALS": Key(
            False,
            "Also return `proposals`: boxes, objectness and soft masks relative to the boxes.",
        ),
        "RETURN_SEM_SEG": Key(
            False, "Also return `sem_seg`: class scores (K + 1, H, W), background last."
        ),
        "PROPOSAL_MASK_SIZE": Key(
            112,
            "Side M of the (N, M, M) proposal masks, which are relative to their boxes. A small "
            "value is enough where only the boxes are used.",
            low=1,
            high=4096,
            unit="cells",
        ),
    }


def _mean_shift_keys() -> Keys:
    """Recurrent mean shift on the unit sphere, which moves embeddings towards their modes."""
    return {
        "BANDWIDTH_MODE": Key(
            "margin",
            "Source of the bandwidth delta of the kernel exp(x·y / delta²). `fixed`: BANDWIDTH. "
            "`learned`: a parameter that starts at BANDWIDTH. `margin`: (1 - `RPE.MARGIN`) / 3.",
            choices=("fixed", "learned", "margin"),
        ),
        "BANDWIDTH": Key(0.2, "delta; the mode `margin` ignores it.", low=0.001),
        "SPATIAL_BANDWIDTH": Key(
            4.0,
            "sigma of the spatial factor exp(-|p - q|² / (2 sigma²)). 0: no spatial factor.",
            low=0,
            unit="pixels",
        ),
        "RELATIVE_BANDWIDTH": Key(
            0.0,
            "sigma of a pixel as a fraction of the predicted size of its instance, the square "
            "root of the area, and at least SPATIAL_BANDWIDTH: votes scatter more in large "
            "instances. 0: SPATIAL_BANDWIDTH for all pixels. It needs `RPE.VOTES`.",
            low=0,
        ),
        "TRAIN_LOOPS": Key(
            2,
            "Loops in training. The losses apply before the first loop and after each.",
            low=0,
            high=100,
            unit="loops",
        ),
        "TRAIN_KEYS": Key(
            0,
            "0: the pixels sampled for the loss are shifted among themselves. Above 0: all cells "
            "of an image are shifted by the density of at most this many of them, sampled with "
            "equal probability, and the loss uses the shifted map; large instances then attract "
            "as strongly as they do at inference.",
            low=0,
            unit="cells",
        ),
        "TEST_LOOPS": Key(5, "Loops at inference.", low=0, high=1000, unit="loops"),
        "TEST_SCALES": Key(
            [1.0],
            "Factors of both bandwidths. Pixels are grouped once with each, at inference and to "
            "train the quality head; the scores then decide between an object and its parts.",
            above=0,
            unit="factors",
            nonempty=True,
        ),
        "TOLERANCE": Key(
            1e-3,
            "At inference, stop when no coordinate changes by more than this in a loop. 0: run "
            "all loops.",
            low=0,
        ),
        "MAX_KEYS": Key(
            4096,
            "Largest number of foreground pixels that are shifted among themselves at inference. "
            "The other pixels follow the nearby ones.",
            low=1,
            unit="pixels",
        ),
    }


def _proposals_keys() -> Keys:
    """Settings of `MeanShiftProposalGenerator` that differ from `MODEL.RPE` and `MEAN_SHIFT`."""
    return {
        "STRIDE": Key(8, "Replaces `RPE.STRIDE`.", choices=(1, 2, 4, 8), unit="pixels"),
        "NUM_LEVELS": Key(
            2,
            "Number of maps that are grouped: at STRIDE, at twice STRIDE and so on, with the same "
            "predictors on features pooled 2 x 2.",
            low=1,
            high=10,
            unit="maps",
        ),
        "SCALES": Key(
            [0.7, 1.4],
            "Replaces `MEAN_SHIFT.TEST_SCALES`.",
            above=0,
            unit="factors",
            nonempty=True,
        ),
        "MAX_KEYS": Key(1024, "Replaces `MEAN_SHIFT.MAX_KEYS`.", low=1, unit="pixels"),
        "MAX_GROUPS": Key(
            100, "Replaces `RPE.MAX_GROUPS`, for each level and scale.", low=1, unit="groups"
        ),
        "NMS_THRESH": Key(
            0.7,
            "Soft-NMS: of two proposals whose masks have a higher IoU than this, the lower score "
            "is multiplied by 1 - IoU.",
            low=0,
            high=1,
        ),
        "DUPLICATE_THRESH": Key(
            0.9,
            "Of two proposals whose masks have a higher IoU than this, the one with the lower "
            "score is dropped.",
            low=0,
            high=1,
        ),
        "PRE_NMS_TOPK": Key(
            1000,
            "Number of the best groups of an image that enter the suppression.",
            low=1,
            unit="groups",
        ),
        "POST_NMS_TOPK_TRAIN": Key(
            500,
            "Number of proposals of an image that remain in training.",
            low=0,
            unit="proposals",
        ),
        "POST_NMS_TOPK_TEST": Key(
            300,
            "Number of proposals of an image that remain at inference.",
            low=1,
            unit="proposals",
        ),
    }


EMBEDDING_NODES = {
    "MODEL.RPE": _rpe_keys,
    "MODEL.MEAN_SHIFT": _mean_shift_keys,
    "MODEL.RPE.PROPOSALS": _proposals_keys,
}
