"""The command line of ``rpe-d2 refine-masks`` and tools/refine_masks.py."""

import argparse
from pathlib import Path
from typing import List, Optional

from rpe_d2.engine.host_models import inference_inputs
from rpe_d2.engine.setup import read_config, use_available_device
from rpe_d2.inference.predictor import Predictor
from rpe_d2.utils.errors import one_line_errors
from rpe_d2.utils.files import make_writable_folder

from .mask_refiner import MaskRefiner, run_header
from .refine_maps import LabelMaps
from .refine_results import Results


def main(argv: Optional[List[str]] = None) -> int:
    """Refines COCO results (a JSON file) or label maps (a folder) with a trained refiner.

    The output has the format of the input. COCO results keep their entries and their order, and
    only masks and boxes change. Label maps (PNG, TIFF or NPY) keep their names, and no map gets a
    label that it did not have. Pixels with the label 255, or 65535 in 16-bit maps, are unlabeled
    and stay unlabeled; with ``--sparse`` they get the label that propagates to them.

    An interrupted run continues when it is started again with the same input, configuration and
    weights. Nothing is overwritten.

    Returns:
        Exit status: 0, or 2 with a one-line error if a key or a file is wrong.
    """
    args = _parse(argv)
    with one_line_errors():
        source, output = Path(args.input), Path(args.output)
        if not source.exists():
            raise ValueError(f"--input {source}: no such file or folder")
        if output.resolve() == source.resolve():
            raise ValueError(f"--output {output} is the input, which is not overwritten")
        work = LabelMaps(args) if source.is_dir() else Results(args)
        cfg = read_config(args.config_file, args.opts)
        use_available_device(cfg)
        if args.weights:
            cfg.MODEL.WEIGHTS = args.weights
        inputs = inference_inputs(cfg)
        if "coarse_masks" not in inputs and not (args.sparse and "sparse_labels" in inputs):
            raise ValueError(
                f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}; allowed: models that "
                "refine masks, as in configs/spn/refiner_shapes.yaml, or with --sparse that of "
                "configs/spn/sparse_labels.yaml"
            )
        refiner = MaskRefiner(Predictor(cfg), args.sparse)
        if args.pictures:
            make_writable_folder("--pictures", Path(args.pictures))
        work.refine(refiner, run_header(cfg, args, work.digest), args.pictures)
    return 0


def _parse(argv: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Refines masks or label maps of any model by spatial propagation."
    )
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="configuration of the refiner"
    )
    parser.add_argument("--weights", metavar="FILE", help="default: MODEL.WEIGHTS")
    parser.add_argument(
        "--input",
        required=True,
        metavar="PATH",
        help="COCO results (JSON), or a folder of PNG, TIFF or NPY files with one label per "
        "pixel",
    )
    parser.add_argument(
        "--images",
        required=True,
        metavar="DIR",
        help="folder of the images; those of label maps have the same names",
    )
    parser.add_argument(
        "--annotations",
        metavar="FILE",
        help="COCO JSON with the file names of the image_ids; not needed if the results have "
        "file_name",
    )
    parser.add_argument("--output", required=True, metavar="PATH", help="a new file or folder")
    parser.add_argument(
        "--sparse", action="store_true", help="label maps: spread labels to unlabeled (255) pixels"
    )
    parser.add_argument(
        "--keep",
        type=int,
        metavar="N",
        help="with --sparse: use only N random labels of complete maps and print the accuracy on "
        "the other labels",
    )
    parser.add_argument(
        "--pictures",
        metavar="DIR",
        help="also draw each image with its input and its output",
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides, after all flags"
    )
    args = parser.parse_args(argv)
    if args.keep is not None and not (args.sparse and args.keep > 0):
        parser.error(f"--keep is {args.keep}; allowed: 1 or more, with --sparse")
    return args
