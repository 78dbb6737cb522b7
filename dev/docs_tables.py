"""The generated parts of the documentation: configuration keys and tables of results."""

from pathlib import Path
from typing import Dict

from dev.benchmark_tables import benchmark_table, compared, processes_table, propagation_table
from dev.config_tables import config_table
from dev.fit_tables import fit_table
from dev.input_kinds import input_table
from dev.pair_loss_tables import (
    pair_loss_rows,
    pair_loss_runs_table,
    pair_loss_table,
)
from dev.paper_tables import (
    additions_table,
    decoded_table,
    holes_table,
)
from dev.refine_tables import refined_tables
from dev.result_tables import (
    Model,
    Score,
    ablation_table,
    model_table,
    runs_table,
    scores_table,
    seeds_table,
    select_columns,
)
from dev.video_tables import video_tables

PAGES = (
    "README.md",
    "docs/configuration.md",
    "docs/claims.md",
    "docs/concepts.md",
    "docs/experiments.md",
    "docs/images.md",
    "docs/model_zoo.md",
    "docs/predict.md",
    "docs/refine.md",
    "docs/benchmarks.md",
    "docs/video.md",
)
_MODELS = (
    Model("PixelEmbeddingNet", "shapes", ("equal_minutes/shapes_rpe_*.json",)),
    Model("class map, connected components", "shapes", ("shapes_rpe_control.json",)),
    Model("Mask R-CNN", "shapes", ("equal_minutes/shapes_mask_rcnn_*.json",)),
    Model("PixelEmbeddingNet, as in the paper", "digits", ("paper/digits_[0-9].json",)),
    Model("Mask R-CNN", "digits", ("paper/digits_mask_rcnn_*.json",)),
    Model("PixelEmbeddingNet", "nuclei", ("nuclei_rpe_R_18.json",)),
    Model("class map, connected components", "nuclei", ("nuclei_semantic_control.json",)),
    Model("Mask R-CNN", "nuclei", ("nuclei_mask_rcnn_R_18.json",)),
    Model("Mask R-CNN", "shapes_large", ("spn/mask_rcnn_shapes_large_*.json",)),
    Model("Mask R-CNN, SPNMaskHead", "shapes_large", ("spn/mask_rcnn_spn_shapes_*.json",)),
)
_MASKS, _BOXES = "proposals_segm", "proposals_bbox"
_PROPOSAL_SCORES = {
    "proposals, masks, AR": [Score(_MASKS, f"AR@{n}", f"AR@{n}") for n in (10, 100, 1000)],
    "proposals, masks, R50": [Score(_MASKS, f"R50@{n}", f"R50@{n}") for n in (10, 20, 30, 60)],
    "proposals, boxes, AR": [Score(_BOXES, f"AR@{n}", f"AR@{n}") for n in (10, 100, 1000)],
    "proposals, boxes, R50": [Score(_BOXES, f"R50@{n}", f"R50@{n}") for n in (10, 20, 30, 60)],
    "detectors on proposals, masks": [Score("segm", ap, ap) for ap in ("AP", "AP50", "AP75")],
    "detectors on proposals, boxes": [Score("bbox", ap, ap) for ap in ("AP", "AP50", "AP75")],
}
_SPN_SCORES = {
    "refined masks": [
        Score("segm", "AP", "AP"),
        Score("segm_boundary", "AP", "boundary AP"),
        Score("bbox", "AP", "box AP"),
    ],
    "refined masks, narrow bands": [
        Score("segm_boundary_2px", "AP", "AP within 2 px"),
        Score("segm_boundary_1px", "AP", "AP within 1 px"),
    ],
    "refined maps": [
        Score("sem_seg", "mIoU", "mIoU"),
        Score("sem_seg_boundary", "mIoU", "boundary mIoU"),
        Score("sem_seg_boundary_1px", "mIoU", "mIoU within 1 px"),
    ],
}
_BOUNDARY_SCORES = [Score("boundary", name, name) for name in ("ODS", "OIS", "AP")]
_DIGIT_SCORES = [
    Score("best_iou", "mean", "mean best IoU"),
    Score("best_iou", "above50", "above .5, %"),
    Score("best_iou", "predictions", "predictions"),
    Score("best_iou", "AP", "class-agnostic AP"),
]
_PAPER = {
    "digits": (["digits_*.json"], _DIGIT_SCORES),
    "loops": (["loops_*.json", "no_loops_*.json"], _DIGIT_SCORES),
    "dimensions": (["dim_*.json", "margin_*.json", "loops_0_[1-3].json"], _DIGIT_SCORES),
}
# The forms of the method between the paper's and this project's, by the names of their records.
_ADDITIONS = {
    "paper": "as in the paper",
    "kernel": "+ radius of the loss, spatial kernel on pixels",
    "votes": "+ votes for the center, spatial kernel on votes",
    "classifier": "+ foreground classifier",
    "quality": "+ learned ranking",
}
_COMPARED_COLUMNS = {
    "instances": ["model", "AP", "AP50", "AP75", "AR", "boundary AP", "box AP"],
    "proposals": [
        *["model", "AR@10", "AR@100", "AR@1000", "AUC", "R50@10", "box AR@10", "box AR@100"]
    ],
    "cost": ["model", "s / image", "M parameters", "GFLOPs"],
}
_PROPAGATION_COLUMNS = {
    "propagation, times": [
        ("op_milliseconds", "ms"),
        ("torch_milliseconds", "plain torch, ms"),
        ("unbind_milliseconds", "autograd over `unbind()`, ms"),
        ("compile_milliseconds", "compiled, ms"),
        ("index_milliseconds", "autograd over `x[t]`, ms"),
    ],
    "propagation, ratios": [
        ("op_faster_than_torch", "faster than plain torch"),
        ("op_faster_than_unbind", "than `unbind()`"),
        ("op_faster_than_compile", "than compiled"),
        ("op_faster_than_index", "than `x[t]`"),
        ("percent_of_limit", "% of the limit"),
    ],
}


def generated_tables(results: Path) -> Dict[str, str]:
    """Returns all tables by name: the configuration keys, and tables of the records in a folder."""
    tables = {
        "config keys": config_table(),
        "input kinds": input_table(),
        "models": model_table(results, _MODELS),
        "results": scores_table(results),
        "result runs": runs_table(results),
        "search": scores_table(results, "search", by_file=True),
        "search runs": runs_table(results, "search", by_file=True),
        "ablations": ablation_table(results / "ablations"),
        "quickstart": seeds_table(
            results.glob("equal_minutes/shapes_rpe_*.json"),
            [Score("segm", name, name) for name in ("AP", "AP50", "AP75", "AR")],
        ),
        "boundaries": seeds_table((results / "boundary").glob("*.json"), _BOUNDARY_SCORES),
        **{
            name: seeds_table(
                [path for pattern in patterns for path in (results / "paper").glob(pattern)],
                scores,
            )
            for name, (patterns, scores) in _PAPER.items()
        },
        "additions": additions_table(results / "paper", _ADDITIONS),
        "contours in two stages": seeds_table(
            [*results.glob("boundary/bsds_[0-9].json"), *results.glob("paper/bsds_last_*.json")],
            _BOUNDARY_SCORES,
            by_file=True,
        ),
        **{
            title: seeds_table(
                (results / "equal_minutes").glob(f"{start}_*.json"),
                [Score("segm", name, name) for name in ("AP", "AP50", "AP75", "AR")],
                by_file=True,
            )
            for title, start in (("changes", "dev"), ("equal minutes", "shapes"))
        },
        "nuclei changes": seeds_table(
            [*(results / "split").glob("*.json"), *results.glob("equal_minutes/split_*.json")],
            [
                *(Score("segm", name, name) for name in ("AP", "AP50", "AR")),
                Score("segm_touching", "AP", "touching: AP"),
            ],
            by_file=True,
        ),
        "fits": fit_table(results / "fit"),
        **refined_tables(results / "refine"),
        **video_tables(results / "video"),
        "holes": holes_table(results / "paper"),
        "decoded loops": decoded_table(results / "paper" / "decoded"),
        "benchmarks": benchmark_table(results),
        "processes": processes_table(results / "benchmark_processes.json"),
    }
    for folder, scores in (("proposals", _PROPOSAL_SCORES), ("spn", _SPN_SCORES)):
        for name, columns in scores.items():
            tables[name] = seeds_table((results / folder).glob("*.json"), columns)
    pair_loss = pair_loss_rows({name: results / "semantic" / name for name in ("clean", "noisy")})
    tables["pair loss"] = pair_loss_table(pair_loss, "sem_seg")
    tables["pair loss, boundaries"] = pair_loss_table(pair_loss, "sem_seg_boundary")
    tables["pair loss, runs"] = pair_loss_runs_table(pair_loss)
    for name, file in (
        ("systems on shapes", "compare_shapes.json"),
        ("systems on nuclei", "compare_nuclei.json"),
        ("mask proposals", "compare_proposals_shapes.json"),
    ):
        table = compared(results / file)
        for part, headings in _COMPARED_COLUMNS.items():
            if part != "instances" or name != "mask proposals":
                tables[f"{name}, {part}"] = select_columns(table, headings)
    for name, columns in _PROPAGATION_COLUMNS.items():
        tables[name] = propagation_table(results / "benchmark_spn.json", columns)
    return tables


def update_pages(root: Path) -> Dict[Path, str]:
    """Inserts the generated tables into the texts of the pages, each between its two markers.

    Args:
        root: the folder of README.md, docs/ and results/.

    Returns:
        The new text of each page. No file is written.

    Raises:
        ValueError: The markers of a table are missing, or occur several times.
    """
    pages = {root / name: (root / name).read_text() for name in PAGES}
    for name, table in generated_tables(root / "results").items():
        begin = f"<!-- {name}: generated by dev/update_docs.py -->"
        end = f"<!-- end of {name} -->"
        places = [page for page, text in pages.items() if begin in text and end in text]
        if len(places) != 1:
            raise ValueError(f"{begin!r} and {end!r} are in {len(places)} of {', '.join(PAGES)}")
        (page,) = places
        if page.parent != root:
            table = table.replace("](results/", "](../results/")
        head, rest = pages[page].split(begin, 1)
        # Markdown needs an empty line between a comment and a table.
        pages[page] = f"{head}{begin}\n\n{table}\n\n{end}{rest.split(end, 1)[1]}"
    return pages
