"""Every configuration key that rpe_d2 adds to Detectron2's."""

from detectron2.config import CfgNode as CN


def add_rpe_config(cfg: CN) -> None:
    """Adds the keys of rpe_d2, with their defaults, to a Detectron2 configuration.

    Call it on ``detectron2.config.get_cfg()`` before merging a file. Nothing else is changed.
    """
    # COCO-format data sets to register: "name=path.json:image_root"; the root defaults to the JSON's folder.
    # Each is also registered as NAME_sem_seg, with semantic maps painted from its masks, background first.
    cfg.DATASETS.COCO_JSONS = []
    # Folders of pictures and of PNG maps of classes, as ADE20K's, to register: "name=images/:labels/", names of the
    # classes in a file of one a line: "name=images/:labels/:classes.txt".
    cfg.DATASETS.SEM_SEG_DIRS = []
    # Folder of the Helen face-parsing data, registered as helen_train, helen_val and helen_test; "": none.
    cfg.DATASETS.HELEN = ""
    # Folder with VOCdevkit/VOC2012 (or VOC2012 itself) and, in benchmark_RELEASE/dataset or sbd, SBD: registered as
    # voc_2012_train, voc_2012_val, voc_2012_sbd_train, sbd_train and sbd_val, each also with semantic maps as
    # NAME_sem_seg; "": none.
    cfg.DATASETS.VOC = ""
    # Folder of BSDS500, registered as bsds_train, bsds_val and bsds_test as far as they are there; "": none.
    cfg.DATASETS.BSDS = ""
    # In training turn pictures by a random multiple of 90 degrees (for pictures without an upright direction).
    cfg.INPUT.QUARTER_TURNS = False
    # In training scale contrast, brightness and saturation by random factors of 1 +- this; 0: none.
    cfg.INPUT.COLOR_JITTER = 0.0
    # Registered name of the mapper of training; "": the one that the model's classes declare, else PixelLabelMapper with
    # MODEL.MASK_ON and Detectron2's DatasetMapper without.
    cfg.INPUT.DATASET_MAPPER_NAME = ""
    # Also evaluate class-agnostic proposals: average recall at 1 to 1,000 and more (MaskProposalEvaluator). A
    # ProposalNetwork always is.
    cfg.TEST.PROPOSALS = False
    # Also evaluate boundaries: Boundary AP of instances, Boundary IoU of semantic maps, at 2 % of the picture's diagonal
    # and at 2 pixels and 1 pixel (BoundaryAPEvaluator).
    cfg.TEST.BOUNDARIES = False
    # Refine semantic scores by a fully connected CRF before they are evaluated, to compare with (needs pydensecrf2).
    cfg.TEST.DENSE_CRF = crf = CN()
    crf.ENABLED = False
    # Iterations of mean-field inference.
    crf.ITERATIONS = 5
    # The appearance kernel: sigma in the picture (pixels) and in each colour channel (0-255), and weight.
    crf.POSITION = 80.0
    crf.COLOR = 13.0
    crf.WEIGHT = 10.0
    # Also evaluate AP^r, PASCAL VOC's average precision with the IoU of masks (VOCInstanceEvaluator). Data sets of
    # DATASETS.VOC always are.
    cfg.TEST.VOC_AP = False
    # Thresholds at which BSDSBoundaryEvaluator compares boundaries with the annotators'; the benchmark has 99, fewer are
    # faster.
    cfg.TEST.BOUNDARY_THRESHOLDS = 99
    # Also evaluate by themselves the instances whose mask, dilated by 2 pixels, meets another's ("segm_touching").
    cfg.TEST.TOUCHING_INSTANCES = False
    # "SGD" (Detectron2's) or "ADAMW" (decoupled weight decay; MOMENTUM and NESTEROV do not apply).
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Batches of IMS_PER_BATCH whose mean gradient makes one step; MAX_ITER counts steps.
    cfg.SOLVER.ACCUMULATE_STEPS = 1
    # With SOLVER.AMP.ENABLED: "float16" (CUDA only, with a loss scaler; on a CPU training stays in float32) or "bfloat16"
    # (also on a CPU, where it is faster if the CPU has AVX512-BF16 or AMX).
    cfg.SOLVER.AMP.PRECISION = "float16"
    cfg.SOLVER.EMA = ema = CN()
    # Evaluate, and save beside the trained ones, weights averaged over about the last 1 / (1 - DECAY) steps.
    ema.ENABLED = False
    # Weight of the old average in the new one; it grows to this as (1 + n) / (10 + n) over the steps n.
    ema.DECAY = 0.999
    # Steps with infinite or NaN losses or gradients that are skipped, each with a warning; one more ends the run.
    cfg.SOLVER.MAX_NONFINITE_STEPS = 10
    # Evaluations without a better TEST.BEST_METRIC after which training ends; 0: never.
    cfg.SOLVER.EARLY_STOPPING_PATIENCE = 0
    # Several processes: look for parameters without gradient in each step, which costs time. Needed where outputs of the
    # backbone lead nowhere, as coarse ones of an FPN under DeepMask and InstanceFCN.
    cfg.SOLVER.FIND_UNUSED_PARAMETERS = False
    # Keep the weights that were best in this score in model_best.pth: "segm/AP", "validation/total_loss", ...; with
    # several data sets "NAME/segm/AP". "": keep none.
    cfg.TEST.BEST_METRIC = ""
    # In each evaluation also compute the training losses on the first of DATASETS.TEST.
    cfg.TEST.VALIDATION_LOSS = False
    # Images or annotations that cannot be read are replaced in training, each with a warning; more different ones than
    # this end the run.
    cfg.DATALOADER.MAX_UNREADABLE = 10
    # Use deterministic algorithms where torch has them (slower on GPUs): on a CPU two runs of a seed are then equal bit
    # for bit.
    cfg.DETERMINISTIC = False
    # Send scores and losses to this project of Weights & Biases (needs wandb); "": do not.
    cfg.WANDB_PROJECT = ""

    cfg.MODEL.GUIDED_BACKBONE = guided = CN()
    # Backbone that build_guided_backbone wraps; its outputs gain "image", the normalised picture at stride 1.
    guided.NAME = "build_resnet_fpn_backbone"
    # Sizes of the picture at which that backbone runs, with the same weights; at 0.5 outputs are called "res4@0.5",
    # and what it sees "image@0.5".
    guided.SCALES = [1.0]
    # What it sees there: "gaussian", the resized picture; "laplacian", what that shows beyond the next smaller one,
    # with normalised contrast (SCALES fall).
    guided.PYRAMID = "gaussian"
    # Add the output "stem": a ResNet's first convolution, at stride 2.
    guided.STEM = False
    # Keep that backbone's parameters, and the statistics of its batch normalisation, as they are, without dropout.
    guided.FREEZE = False

    # ---- VGG-16 (build_vgg16_backbone); BACKBONE.FREEZE_AT counts its blocks
    cfg.MODEL.VGG = vgg = CN()
    # Of conv1_1 ... conv5_3, pool1 ... pool5, pool1_indices ... pool5_indices, fc6, fc7.
    vgg.OUT_FEATURES = ["pool3", "pool4", "conv5_3"]
    # After the convolutions: "", "BN" or "FrozenBN".
    vgg.NORM = ""
    # Factor of the blocks' channels (1: 64 to 512).
    vgg.WIDTH = 1.0
    # Channels of fc6 and fc7, and share of them that is dropped in training.
    vgg.FC_DIM = 4096
    vgg.DROPOUT = 0.5
    # State dict of torchvision's vgg16 (with NORM vgg16_bn) on the disk; "": random weights.
    vgg.WEIGHTS = ""

    # ---- Semantic heads of this package; the rest is in Detectron2's keys
    # Weight of the pair loss on the semantic labels (Kong & Fowlkes, section 6), with RPE's EMBEDDING_DIM, MARGIN,
    # PAIR_LOSS_FORM, PAIR_LOSS_NORMALIZATION, POSITIVE_WEIGHT, NEGATIVE_WEIGHT and TRAIN_POINTS; 0: none; -1: 1 for
    # EmbeddingSemSegHead, none for the others.
    cfg.MODEL.SEM_SEG_HEAD.PAIR_LOSS_WEIGHT = -1.0
    # 3x3 convolutions that EmbeddingSemSegHead's predictions share, or of each pass of RecurrentConvSemSegHead.
    cfg.MODEL.SEM_SEG_HEAD.NUM_CONVS = 2
    # RecurrentConvSemSegHead: sizes of the picture that its passes see, one after the other; the last is the result.
    cfg.MODEL.SEM_SEG_HEAD.RECURRENT_SCALES = [0.125, 0.25, 0.5, 1.0]

    # Backbone outputs that the mask head gets under GuidedROIHeads and GuidedCascadeROIHeads, with POOLER_TYPE "";
    # empty: as Detectron2 has it, ROI_HEADS.IN_FEATURES.
    cfg.MODEL.ROI_MASK_HEAD.IN_FEATURES = []

    # ---- Spatial propagation
    cfg.MODEL.SPN = spn = CN()
    # Backbone outputs that guide the propagation of whole pictures; empty: all of them.
    spn.IN_FEATURES = []
    # Channels of the guidance network, and normalisation of its convolutions: any of Detectron2's, "" for none.
    spn.CONV_DIM = 64
    spn.NORM = "GN"
    # Channels that a mask head or semantic head propagates, each with gates of its own. SPNSemSegHead also takes 0: the
    # probabilities of its classes are propagated themselves, all with the same gates (not beside an SPNMaskHead).
    spn.CHANNELS = 8
    # Propagations one after the other, with the same gates; 0: none, a control.
    spn.NUM_UNITS = 2
    # "softmax", "abs_sum" or "clipped": see rpe_d2.ops.propagation.normalize_gates. SPNRefiner, RPE.REFINE and
    # CHANNELS 0: "softmax".
    spn.GATE_MODE = "softmax"
    # Gates of a pixel and direction: 3, or 1 (of the same row or column alone).
    spn.CONNECTIONS = 3
    # Pixels per cell where whole pictures are propagated: 1, 2, 4 ...
    spn.STRIDE = 2
    # Side of the masks that SPNMaskHead refines: a multiple of twice ROI_MASK_HEAD.POOLER_RESOLUTION; 0: just that.
    spn.RESOLUTION = 0
    # Semantic head whose scores SPNSemSegHead refines.
    spn.SEM_SEG_HEAD = "SemSegFPNHead"
    # Keep that head, trained before (MODEL.WEIGHTS), as it is and train its refinement alone. The backbone has to stay as it
    # is, too: GUIDED_BACKBONE.FREEZE.
    spn.FREEZE_HEAD = False
    # Weight of the loss after refinement.
    spn.LOSS_WEIGHT = 1.0
    # SPNRefiner is trained on this many true masks of a picture, each moved by up to JITTER pixels and cut at one of
    # these fractions of its resolution; it is evaluated on all of them, cut at the first.
    spn.NUM_MASKS = 8
    spn.JITTER = 2
    spn.COARSE_FACTORS = [4, 2, 8]

    # ---- Multi-task network cascades (MNCROIHeads); the rest is in RPN, ROI_HEADS and ROI_BOX_HEAD.BBOX_REG_WEIGHTS
    cfg.MODEL.MNC = mnc = CN()
    # 3: boxes, masks, classes; 5: the regressed boxes go through masks and classes once more.
    mnc.NUM_STAGES = 5
    # Side of a region's features; they are warped twice as fine.
    mnc.RESOLUTION = 14
    # Side of the masks.
    mnc.MASK_SIZE = 28
    # Hidden units of the masks, and of each layer for boxes and for masked features.
    mnc.MASK_DIM = 256
    mnc.FC_DIM = 4096
    # Weight of the masks' loss.
    mnc.MASK_LOSS_WEIGHT = 1.0
    # Share of the background regions sampled in training that overlap all objects by an IoU below 0.1.
    mnc.EASY_BACKGROUND = 0.15
    # Masks of boxes with this IoU vote for each other; voted masks are cut at MASK_THRESHOLD.
    mnc.VOTE_IOU = 0.5
    mnc.MASK_THRESHOLD = 0.4

    # ---- Fully convolutional instance-aware segmentation (FCISROIHeads); the rest is in RPN and ROI_HEADS
    cfg.MODEL.FCIS = fcis = CN()
    # Channels of the 1x1 convolution before the score maps.
    fcis.CONV_DIM = 1024
    # A region has PARTS x PARTS position-sensitive parts of CELLS x CELLS cells each; masks have PARTS * CELLS a side.
    fcis.PARTS = 7
    fcis.CELLS = 3
    # Weight of the masks' loss.
    fcis.MASK_LOSS_WEIGHT = 10.0
    # Masks of boxes with this IoU vote for each other; voted masks are cut at MASK_THRESHOLD.
    fcis.VOTE_IOU = 0.5
    fcis.MASK_THRESHOLD = 0.4

    # ---- Mask proposals from windows on a pyramid of maps (DeepMask, SharpMask)
    cfg.MODEL.DEEPMASK = deepmask = CN()
    # Maps of the pyramid, all with the same number of channels: "res4", "res4@0.5" (GUIDED_BACKBONE.SCALES), an FPN's.
    deepmask.IN_FEATURES = ["res4"]
    # Cells of a window, each way.
    deepmask.WINDOW = 14
    # The longer side of a canonical object's box as a share of its window's side: 128 of 224 pixels.
    deepmask.OBJECT_SIZE = 128 / 224
    # A window is positive for an object if its centre is at most this share of its side away, each way (16 of 224
    # pixels), and if the object's size is within this many octaves of the canonical one.
    deepmask.POSITIVE_SHIFT = 16 / 224
    deepmask.POSITIVE_SCALE = 0.25
    # It is negative if for every object it is at least this far away (32 of 224 pixels) or of another size, in octaves.
    deepmask.NEGATIVE_SHIFT = 32 / 224
    deepmask.NEGATIVE_SCALE = 1.0
    # Windows of an image to train on, half of them positive; where fewer are, as many negative ones.
    deepmask.BATCH_SIZE_PER_IMAGE = 64
    # Channels of the 1x1 convolution, of a window's code (the rank of the masks' layer) and of the score's hidden layer.
    deepmask.CONV_DIM = 128
    deepmask.CODE_DIM = 512
    deepmask.SCORE_DIM = 1024
    # Share of the code and of the score's hidden units that is dropped in training.
    deepmask.DROPOUT = 0.5
    # Side of the predicted masks.
    deepmask.MASK_SIZE = 56
    # lambda, weight of the scores' loss.
    deepmask.SCORE_LOSS_WEIGHT = 1 / 32
    # The best windows of an image, over all scales, that are segmented, and proposals that remain of them; 0 in training:
    # none are made, for a ProposalNetwork.
    deepmask.PRE_NMS_TOPK = 500
    deepmask.POST_NMS_TOPK_TRAIN = 500
    deepmask.POST_NMS_TOPK_TEST = 500
    # Of two proposals whose boxes overlap by more than this IoU the worse one is dropped; 1: none is.
    deepmask.NMS_THRESH = 1.0
    # Probability from which on a cell belongs to the object.
    deepmask.MASK_THRESHOLD = 0.2
    # SharpMask: maps that refine the masks, from the windows' own to finer ones, each of half the stride of the one before;
    # of "res4@0.5" they are "res4@0.5", "res3@0.5" and so on. "stem" needs GUIDED_BACKBONE.STEM; "image" may come last.
    deepmask.SHARPMASK_FEATURES = ["res4", "res3", "res2", "stem"]
    # SharpMask: channels of the coarsest map; each refinement halves them and doubles the masks' side, WINDOW at first.
    deepmask.SHARPMASK_DIM = 32

    # ---- Mask proposals from instance-sensitive score maps (InstanceFCN); what DEEPMASK has too means the same
    cfg.MODEL.INSTANCE_FCN = instance_fcn = CN()
    # Maps of the pyramid, all with the same number of channels: "p3", "p3@0.5" (GUIDED_BACKBONE.SCALES).
    instance_fcn.IN_FEATURES = ["p3"]
    # Cells of a window, each way: odd.
    instance_fcn.WINDOW = 21
    # k: a window has k x k parts, each with a score map of its own.
    instance_fcn.PARTS = 5
    # The longer side of a canonical object's box as a share of its window's side.
    instance_fcn.OBJECT_SIZE = 128 / 224
    # A window is positive for an object if its centre is at most this share of its side away, each way, and if the object's
    # size is within this many octaves of the canonical one: a little more than half of the step between scales, 1.5.
    instance_fcn.POSITIVE_SHIFT = 16 / 224
    instance_fcn.POSITIVE_SCALE = 0.3
    # It is negative if for every object it is at least this far away or of another size, in octaves.
    instance_fcn.NEGATIVE_SHIFT = 32 / 224
    instance_fcn.NEGATIVE_SCALE = 1.0
    # Windows of an image to train on, half of them positive; where fewer are, as many negative ones.
    instance_fcn.BATCH_SIZE_PER_IMAGE = 256
    # Hidden channels of the masks' and of the scores' branch.
    instance_fcn.CONV_DIM = 512
    # Weight of the masks' loss, a sum over a window's cells.
    instance_fcn.MASK_LOSS_WEIGHT = 1.0
    # The best windows of an image, over all scales, that are assembled, and proposals that remain of them; 0 in training:
    # none are made, for a ProposalNetwork.
    instance_fcn.PRE_NMS_TOPK = 2000
    instance_fcn.POST_NMS_TOPK_TRAIN = 1000
    instance_fcn.POST_NMS_TOPK_TEST = 1000
    # Of two proposals whose boxes overlap by more than this IoU the worse one is dropped; 1: none is.
    instance_fcn.NMS_THRESH = 0.8
    # Probability from which on a cell belongs to the object.
    instance_fcn.MASK_THRESHOLD = 0.5

    # ---- Simultaneous detection and segmentation (SDSROIHeads); the rest is in ROI_HEADS and ROI_BOX_HEAD
    cfg.MODEL.SDS = sds = CN()
    # Side of the coarse masks that are predicted from the features, and of the refined ones.
    sds.COARSE_SIZE = 10
    sds.MASK_SIZE = 28
    # Proposals have masks in training, too, for heads that use them: SDSROIHeads masks its features by them, and by whole
    # boxes without. Needs a generator of masks.
    cfg.MODEL.PROPOSAL_GENERATOR.MASKS_IN_TRAINING = False

    # ---- Hypercolumns (HypercolumnMaskHead); the rest is in ROI_MASK_HEAD: IN_FEATURES, CLS_AGNOSTIC_MASK
    cfg.MODEL.HYPERCOLUMN = hypercolumn = CN()
    # K of the K x K classifiers that are mixed by a pixel's place in the box.
    hypercolumn.GRID = 5
    # Side of the masks.
    hypercolumn.RESOLUTION = 50

    # ---- Pixel embeddings: the network and its losses
    cfg.MODEL.RPE = rpe = CN()
    # Backbone outputs that enter the embedding head; empty: all of them.
    rpe.IN_FEATURES = []
    # Pixels per cell of the embedding map: 1, 2, 4 or 8.
    rpe.STRIDE = 4
    # Channels of the head's convolutions.
    rpe.CONV_DIM = 128
    # 3x3 convolutions that all predictions share; each has one more of its own, at the output stride.
    rpe.NUM_CONVS = 2
    # Normalisation of the head's convolutions: any of Detectron2's, "" for none.
    rpe.NORM = "GN"
    # Classes without background; must equal the data set's.
    rpe.NUM_CLASSES = 80
    # D, the dimension of the sphere's space.
    rpe.EMBEDDING_DIM = 16
    # Append the position in the picture, -1..1, to the features.
    rpe.COORDINATES = False
    # Predict for each pixel where its instance's centre is; embeddings and votes are then shifted together with the
    # joint kernel (needs MEAN_SHIFT.SPATIAL_BANDWIDTH).
    rpe.VOTES = True
    # Votes are predicted in units of this many pixels; part of what a checkpoint means.
    rpe.VOTE_UNIT = 4.0
    # Largest size (square root of the area, pixels) that can be predicted of an instance, with
    # MEAN_SHIFT.RELATIVE_BANDWIDTH; the smallest is 256 / it. Part of what a checkpoint means.
    rpe.MAX_SIZE = 256.0

    # alpha of the pair loss: calibrated similarity (1 + cos) / 2 in 0-1 below which instances do not repel.
    rpe.MARGIN = 0.5
    # "linear" (the paper's), "squared_hinge" or "released": see rpe_d2.ops.pair_loss.
    rpe.PAIR_LOSS_FORM = "linear"
    # "joint" (the paper's) or "per_term".
    rpe.PAIR_LOSS_NORMALIZATION = "per_term"
    # Weight of same-instance pairs inside the pair loss.
    rpe.POSITIVE_WEIGHT = 1.0
    # Weight of different-instance pairs inside the pair loss.
    rpe.NEGATIVE_WEIGHT = 1.0
    # Only instances' pixels at most this many pixels apart repel each other; 0: all.
    rpe.NEGATIVE_RADIUS = 0.0
    # Pixels per image that enter the pair loss and the training loops, spread evenly over the instances.
    rpe.TRAIN_POINTS = 1024
    # "exclude": background takes no part in the pair loss; "group": it is one more group.
    rpe.BACKGROUND = "exclude"
    # Weight of the pair loss, averaged over loop 0 and all training loops.
    rpe.PAIR_LOSS_WEIGHT = 1.0
    # Weight of the votes' smooth L1 loss (in units of the spatial bandwidth), averaged over the same loops; and of that
    # of the predicted sizes' logarithm.
    rpe.VOTE_LOSS_WEIGHT = 0.1
    # Weight of the cross-entropy of the class scores.
    rpe.SEM_SEG_LOSS_WEIGHT = 1.0
    # Weight of the cross-entropy of the estimated mask IoU.
    rpe.QUALITY_LOSS_WEIGHT = 1.0
    # Class scores are upsampled to this stride (pixels, at most STRIDE) before the cross-entropy.
    rpe.SEM_SEG_LOSS_STRIDE = 1
    # Rank instances by a learned estimate of their mask IoU times the class probability; False: probability alone.
    rpe.QUALITY = True
    # Images of a batch whose instances are decoded to train the quality head; 0: all.
    rpe.QUALITY_IMAGES = 2

    # ---- Pixel embeddings: from maps to instances
    # "mean_shift"; or, to compare with: "components", connected components of the class map, without embeddings, and
    # "kmeans", told the true number of instances (in evaluations of annotated data).
    rpe.GROUPING = "mean_shift"
    # Pixels with at least this probability of being foreground are grouped.
    rpe.FOREGROUND_THRESHOLD = 0.5
    # Shifted pixels within this raw cosine of a mode's centre belong to it.
    rpe.MERGE_COSINE = 0.9
    # With votes they must also be within this many pixels of it; 0: two spatial bandwidths.
    rpe.MERGE_DISTANCE = 0.0
    # Make every connected part of a group an instance of its own.
    rpe.SPLIT_COMPONENTS = False
    # Instances of fewer pixels are dropped.
    rpe.MIN_AREA = 16
    # The largest groups kept per image before they are ranked: bounds time and memory.
    rpe.MAX_GROUPS = 500
    # Of groups found at several MEAN_SHIFT.TEST_SCALES, the worse of two is dropped where their common area exceeds
    # this share of the smaller one's.
    rpe.OVERLAP_THRESH_TEST = 0.5
    # Instances with a lower score are dropped.
    rpe.SCORE_THRESH_TEST = 0.0
    # Refinement of the instances' soft masks: "", or "spn": propagation by MODEL.SPN (proposals stay as they are).
    rpe.REFINE = ""
    # Soft masks become masks at this value.
    rpe.MASK_THRESHOLD = 0.5
    # PixelEmbeddingNet also returns "proposals": boxes, objectness and box-relative soft masks.
    rpe.RETURN_PROPOSALS = False
    # PixelEmbeddingNet also returns "sem_seg", the class scores (K + 1, H, W), background last.
    rpe.RETURN_SEM_SEG = False
    # M of the (N, M, M) proposal masks relative to their boxes; in proposals for boxes alone few will do.
    rpe.PROPOSAL_MASK_SIZE = 112

    # ---- MeanShiftProposalGenerator: what differs from the keys above, which hold for the rest (with one class)
    rpe.PROPOSALS = proposals = CN()
    # In place of RPE.STRIDE.
    proposals.STRIDE = 8
    # Maps that are grouped: at that stride, at twice that, ... (the same predictors on features pooled 2 x 2).
    proposals.NUM_LEVELS = 2
    # In place of MEAN_SHIFT.TEST_SCALES.
    proposals.SCALES = [0.7, 1.4]
    # In place of MEAN_SHIFT.MAX_KEYS.
    proposals.MAX_KEYS = 1024
    # In place of RPE.MAX_GROUPS, for each level and scale.
    proposals.MAX_GROUPS = 100
    # Boxes hold all cells where a soft mask reaches this: masks are least sure of an object's tips.
    proposals.TIP_THRESHOLD = 0.2
    # Of two proposals whose "mask"s or "box"es overlap by more than NMS_THRESH (IoU) the worse one's score is multiplied
    # by 1 - IoU, by more than DUPLICATE_THRESH it is dropped.
    proposals.NMS_TYPE = "mask"
    proposals.NMS_THRESH = 0.7
    proposals.DUPLICATE_THRESH = 0.9
    # The best groups of an image that the suppression looks at, and those that remain after it.
    proposals.PRE_NMS_TOPK = 1000
    proposals.POST_NMS_TOPK_TRAIN = 500
    proposals.POST_NMS_TOPK_TEST = 300

    # ---- Boundaries (BoundaryEmbeddingNet)
    cfg.MODEL.BOUNDARY = boundary = CN()
    # Backbone outputs that each get an embedding of their own; empty: all of them. One more comes from all together.
    boundary.IN_FEATURES = []
    # Pixels per cell on which the outputs meet: 1, 2, 4 or 8. A plain ResNet has nothing finer than 4; 2 needs
    # build_guided_backbone's "stem" to be worth its cost. Losses are read between the cells, at every pixel.
    boundary.STRIDE = 4
    # Channels of each output's convolution, and its normalisation: any of Detectron2's, "" for none.
    boundary.CONV_DIM = 64
    boundary.NORM = "GN"
    # D, the dimension of the sphere's space.
    boundary.EMBEDDING_DIM = 3
    # How annotators are weighed. "weighted": a pixel is boundary with the share of those who marked it as weight, and
    # not boundary with the rest; "any": boundary where anybody marked it; "minimum": where MIN_ANNOTATORS did (all of
    # them, if there are fewer), and ignored where fewer did.
    boundary.CONSENSUS = "weighted"
    boundary.MIN_ANNOTATORS = 3
    # Weight of the two-group pair loss, averaged over the outputs; 0: none.
    boundary.PAIR_LOSS_WEIGHT = 1.0
    # Weight of the balanced cross-entropy of the logistic stage, averaged over the outputs; 0: no logistic stage, the
    # score of a pixel is then its place between the centres of the two groups.
    boundary.LOGISTIC_LOSS_WEIGHT = 1.0
    # alpha of the pair loss: calibrated similarity (1 + cos) / 2 in 0-1 below which the groups do not repel.
    boundary.MARGIN = 0.5
    # Weights of same-group and of different-group pairs inside the pair loss.
    boundary.POSITIVE_WEIGHT = 1.0
    boundary.NEGATIVE_WEIGHT = 1.0
    # Pixels per image that enter the pair loss, half of them boundary.
    boundary.TRAIN_POINTS = 1024
    # At inference boundaries are averaged over these sizes of the picture.
    boundary.TEST_SCALES = [1.0]
    # Thin the boundaries: non-maximum suppression across their direction. Without it the evaluator thins broad bands at
    # each threshold, which scores clearly worse.
    boundary.THIN = False

    # ---- Recurrent mean shift
    cfg.MODEL.MEAN_SHIFT = shift = CN()
    # Where delta of the kernel exp(x.y / delta^2) comes from: "fixed" = BANDWIDTH, "learned" = starts at BANDWIDTH,
    # "margin" = (1 - RPE.MARGIN) / 3.
    shift.BANDWIDTH_MODE = "margin"
    # delta, > 0; in the mode "margin" it has no effect.
    shift.BANDWIDTH = 0.2
    # sigma of the spatial factor exp(-|p - q|^2 / (2 sigma^2)), pixels; 0: none.
    shift.SPATIAL_BANDWIDTH = 4.0
    # sigma of each pixel is this fraction of the size (square root of the area) that is predicted for its instance, at
    # least SPATIAL_BANDWIDTH: large instances' votes scatter more than small ones'. 0: SPATIAL_BANDWIDTH for all.
    # Needs RPE.VOTES.
    shift.RELATIVE_BANDWIDTH = 0.0
    # Loops in training; the losses stand before the first and after each.
    shift.TRAIN_LOOPS = 2
    # Loops at inference.
    shift.TEST_LOOPS = 5
    # At inference, and to train the quality head, pixels are grouped once with each of these factors of both
    # bandwidths; the ranking decides between a whole and its parts.
    shift.TEST_SCALES = [1.0]
    # At inference, stop when no coordinate changes by more than this in a loop; 0: run all.
    shift.TOLERANCE = 1e-3
    # At inference at most this many foreground pixels are keys, which shift among themselves; all others go where the
    # keys around them went.
    shift.MAX_KEYS = 4096
