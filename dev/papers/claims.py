"""The table of what the papers claim, and whether it is so here."""

from typing import NamedTuple, Tuple

from dev.result_tables import NO_VALUE, markdown_table

REPRODUCED, REFUTED = "reproduced", "refuted"
UNDECIDED, NOT_MEASURED = "undecided", "not measured"
VERDICTS = (REPRODUCED, REFUTED, UNDECIDED, NOT_MEASURED)


class Claim(NamedTuple):
    """A claim of a paper.

    Attributes:
        paper: the paper.
        text: the claim.
        verdict: a word of ``VERDICTS``.
        limits: where and how far the verdict holds.
        evidence: page and section below docs/, or a file below the repository if it begins with
            "../". Empty for a claim that was not measured.
    """

    paper: str
    text: str
    verdict: str
    limits: str = ""
    evidence: str = ""


_RPE, _SPN = "Kong & Fowlkes", "Liu et al. (SPN)"
_TPN, _DEEPMASK = "Liu et al. (TPN)", "Pinheiro et al. (DeepMask)"
_INSTANCE_FCN, _SYSTEMS = "Dai et al. (InstanceFCN)", "model_zoo.md#complete-systems"
_PROPOSERS = "model_zoo.md#systems-that-propose-masks"

CLAIMS: Tuple[Claim, ...] = (
    Claim(
        _RPE,
        "The method separates overlapping objects",
        REPRODUCED,
        "on digits",
        "claims.md#the-authors-digits",
    ),
    Claim(
        _RPE,
        "Loops at inference correct what embeddings get wrong",
        REPRODUCED,
        "on digits",
        "claims.md#loops",
    ),
    Claim(
        _RPE,
        "Five loops in training, from scratch, improve the result",
        REFUTED,
        "on digits in equal CPU time",
        "claims.md#loops",
    ),
    Claim(
        _RPE,
        "Training first without loops, then through five, improves it",
        UNDECIDED,
        "little in short training",
        "claims.md#loops",
    ),
    Claim(
        _RPE,
        "Gradients through the loops neither vanish nor explode",
        REPRODUCED,
        "for 5 loops, not for 10",
        "claims.md#loops",
    ),
    Claim(
        _RPE,
        "Pixels of an object should vote for its class",
        REPRODUCED,
        "on digits, in short training",
        "claims.md#loops",
    ),
    Claim(
        _RPE,
        "A small margin suffices",
        REPRODUCED,
        "on digits, in short training",
        "claims.md#dimensions-and-margin",
    ),
    Claim(
        _RPE,
        "Three dimensions suffice",
        REFUTED,
        "on digits, in short training",
        "claims.md#dimensions-and-margin",
    ),
    Claim(
        _RPE,
        "The bound of the loss does not depend on the number of dimensions",
        REPRODUCED,
        "by optimization",
        "../tests/ops/test_pair_loss_theory.py",
    ),
    Claim(
        _RPE,
        "Embeddings alone separate objects that look alike",
        UNDECIDED,
        "not in short training, one seed",
        "claims.md#look-alikes",
    ),
    Claim(
        _RPE,
        "Embeddings encode the place and the size of their object",
        REPRODUCED,
        "on one image of shapes, with our additions",
        "claims.md#look-alikes",
    ),
    Claim(
        _RPE,
        "A dozen proposals have a higher recall than those of other systems",
        UNDECIDED,
        "ahead of DeepMask, behind InstanceFCN on shapes, one seed",
        _PROPOSERS,
    ),
    Claim(
        _RPE,
        "The spherical loss is ahead of inst-DML, and inst-DML of associative embedding",
        NOT_MEASURED,
    ),
    Claim(
        _RPE,
        "Contours are learned better in two stages",
        UNDECIDED,
        "worse in short training",
        "claims.md#contours-in-two-stages",
    ),
    Claim(
        _RPE,
        "Angles of embeddings encode the orientation of contours",
        UNDECIDED,
        "weak in short training",
        "claims.md#contours-in-two-stages",
    ),
    Claim(
        _RPE,
        "The pair loss fills holes in semantic maps",
        UNDECIDED,
        "fewer in two of three seeds",
        "claims.md#holes-in-label-maps",
    ),
    Claim(
        _SPN,
        "Propagation improves class maps more than a dense CRF",
        REPRODUCED,
        "on shapes_large, three seeds; not within 2 px of boundaries",
        "model_zoo.md#semantic-maps",
    ),
    Claim(
        _SPN,
        "One refiner improves networks that it has not seen",
        UNDECIDED,
        "a small gain on VOC 2012, one seed",
        "refine.md#what-it-gains",
    ),
    Claim(_SPN, "Three connections are better than one", NOT_MEASURED),
    Claim(_SPN, "The maximum merges the directions well", NOT_MEASURED),
    Claim(
        _SPN,
        "Propagation takes much less time than a dense CRF",
        REPRODUCED,
        "on a CPU, without the guidance network",
        "benchmarks.md#spatial-propagation",
    ),
    Claim(
        _SPN,
        "Propagation is a linear map whose rows sum to one",
        REPRODUCED,
        "exactly",
        "../tests/ops/test_propagation.py",
    ),
    Claim(_SPN, "Few annotated pixels can be spread over an image", NOT_MEASURED),
    Claim(_TPN, "Colors of a key frame can be carried to other frames", NOT_MEASURED),
    Claim(_TPN, "Propagation in both directions keeps the style of the key frame", NOT_MEASURED),
    Claim(_TPN, "HDR values can be carried to other frames", NOT_MEASURED),
    Claim(_DEEPMASK, "Objects of new classes are found nearly as well", NOT_MEASURED),
    Claim(_DEEPMASK, "More scales find more small objects", NOT_MEASURED),
    Claim(_DEEPMASK, "Alternate steps for masks and scores help", NOT_MEASURED),
    Claim(
        "Pinheiro et al. (SharpMask)",
        "Refinement raises the recall of DeepMask",
        REPRODUCED,
        "on shapes, one seed",
        _PROPOSERS,
    ),
    Claim(
        _INSTANCE_FCN,
        "InstanceFCN has a higher recall than DeepMask",
        REPRODUCED,
        "on shapes, one seed",
        _PROPOSERS,
    ),
    Claim(_INSTANCE_FCN, "Whole images are better to train on than crops", NOT_MEASURED),
    Claim(
        "Dai et al. (MNC)",
        "Five stages are better than three",
        REPRODUCED,
        "on shapes and nuclei, one seed",
        _SYSTEMS,
    ),
    Claim(
        "Li et al. (FCIS)",
        "FCIS is more precise than MNC",
        UNDECIDED,
        "ahead on nuclei, behind on shapes, one seed",
        _SYSTEMS,
    ),
    Claim(
        "Hariharan et al. (SDS)",
        "Features of the region help beside those of the box",
        NOT_MEASURED,
    ),
    Claim("Hariharan et al. (Hypercolumns)", "Finer layers sharpen masks", NOT_MEASURED),
    Claim("Farabet et al.", "Superpixels improve the map of a multi-scale network", NOT_MEASURED),
    Claim("Pinheiro & Collobert", "A second pass corrects the first one", NOT_MEASURED),
    Claim("Long et al. (FCN)", "Skip connections refine the map", NOT_MEASURED),
    Claim("Noh et al. (DeconvNet)", "Training in two stages improves the map", NOT_MEASURED),
    Claim("Noh et al. (DeconvNet)", "An ensemble with FCN improves the map", NOT_MEASURED),
    Claim("Jaderberg et al.", "Spatial transformers lower the error", NOT_MEASURED),
    Claim("Jaderberg et al.", "The thin plate spline has the lowest error", NOT_MEASURED),
)


def claims_table() -> str:
    """Returns a row for each claim, with its verdict and a link to the evidence."""
    rows = []
    for claim in CLAIMS:
        verdict = f"{claim.verdict}: {claim.limits}" if claim.limits else claim.verdict
        evidence = f"[{_place(claim.evidence)}]({claim.evidence})" if claim.evidence else NO_VALUE
        rows.append([claim.paper, claim.text, verdict, evidence])
    return markdown_table(["paper", "claim", "verdict", "evidence"], rows)


def _place(evidence: str) -> str:
    """Returns what a link to evidence is called: the section of a page, or a file."""
    page, _, section = evidence.partition("#")
    return section.replace("-", " ") if section else page.rpartition("/")[2]
