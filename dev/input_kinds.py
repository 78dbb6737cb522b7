"""What every tool does with every kind of image file: the table in docs/images.md.

tests/cli/test_input_kinds.py makes a file of each kind and checks every cell.
"""

from typing import Dict, NamedTuple, Tuple

TOOLS = ("train", "evaluate", "compare", "refine-masks", "demo", "visualize", "predict")
# They do the same with all kinds, and share a column.
_ALIKE = TOOLS[4:]
WORKS, ERROR, PLANES, IMAGES = "works", "error", "each plane", "its images"


class InputKind(NamedTuple):
    """A row of the table.

    Attributes:
        name: the kind of file.
        answers: what each of ``TOOLS`` does, in this order.
        remark: what happens to the image, or a part of the error message.
    """

    name: str
    answers: Tuple[str, ...]
    remark: str = ""

    @property
    def answer_of(self) -> Dict[str, str]:
        """The answers by tool."""
        return dict(zip(TOOLS, self.answers))


def _all(name: str, answer: str, remark: str = "") -> InputKind:
    return InputKind(name, (answer,) * len(TOOLS), remark)


def _planes(name: str) -> InputKind:
    """A row of files with several planes, of which most tools need to know one."""
    return InputKind(name, (ERROR,) * 4 + (PLANES,) * 3, "name one, as in name.tif[0]")


INPUT_KINDS = (
    _all("8-bit grayscale PNG", WORKS),
    _all("8-bit RGB JPEG", WORKS),
    _all("8-bit RGB WebP", WORKS),
    _all("8-bit RGB TIFF", WORKS),
    _all("8-bit RGB NPY, (H, W, 3)", WORKS),
    _all("1-bit PNG", WORKS),
    _all("RGB PNG with opacity", WORKS, "opacity is dropped"),
    _all("grayscale PNG with opacity", WORKS, "opacity is dropped"),
    _all("palette PNG", WORKS, "colors of the palette"),
    _all("CMYK JPEG", WORKS, "converted to RGB"),
    _all("JPEG with an EXIF orientation", WORKS, "turned upright"),
    InputKind(
        "the same, annotated as it is stored",
        (ERROR,) * 3 + (WORKS,) * 4,
        "its EXIF orientation is 6",
    ),
    _all("16-bit grayscale PNG", WORKS, "`INPUT.INTENSITY`"),
    _all("16-bit RGB PNG", WORKS, "`INPUT.INTENSITY`"),
    _all("16-bit grayscale TIFF", WORKS, "`INPUT.INTENSITY`"),
    _all("16-bit TIFF, LZW", WORKS, "`INPUT.INTENSITY`"),
    _all("signed 16-bit TIFF", WORKS, "`INPUT.INTENSITY`"),
    _all("32-bit integer TIFF", WORKS, "`INPUT.INTENSITY`"),
    _all("floating-point TIFF, 0 to 1", WORKS, "`INPUT.INTENSITY`"),
    _all("floating-point TIFF with NaN and infinity", WORKS, "`INPUT.INTENSITY`"),
    _all("floating-point NPY, (H, W)", WORKS, "`INPUT.INTENSITY`"),
    _all("TIFF of 2 channels", ERROR, "choose with INPUT.CHANNELS"),
    _all("the same with `INPUT.CHANNELS 0,1,1`", WORKS, "red, green and blue"),
    _all("TIFF of 5 channels", ERROR, "choose with INPUT.CHANNELS"),
    _all("the same with `INPUT.CHANNELS mean`", WORKS, "average of all channels"),
    _planes("TIFF of 3 pages"),
    _planes("animated GIF"),
    _planes("NPY, (3, H, W)"),
    _all("one page, `name.tif[1]`", WORKS, "counted from 0"),
    _all("TIFF of 3 pages with `INPUT.PLANE 1`", WORKS, "counted from 0"),
    _all("name with bytes that are no text", WORKS),
    _all("name with `$`, `[` and `%`", WORKS),
    _all("truncated JPEG", ERROR, "truncated"),
    _all("truncated TIFF", ERROR, "truncated"),
    _all("empty file", ERROR, "the file is empty"),
    _all("text file called .png", ERROR, "cannot identify image file"),
    _all("video", ERROR, "cannot identify image file"),
    InputKind("folder called .png", (ERROR,) * 4 + (IMAGES,) * 3, "is a folder"),
    _all("named pipe (FIFO)", ERROR, "is a pipe or a device"),
    _all("PNG of 60,000 x 60,000 pixels", ERROR, "178956970 pixels"),
)


def input_table() -> str:
    """Returns the table in Markdown."""
    first = len(TOOLS) - len(_ALIKE)
    headings = [*TOOLS[:first], ", ".join(_ALIKE)]
    lines = [f"| kind of file | {' | '.join(headings)} | remark or message |"]
    lines.append("|---" * (len(headings) + 2) + "|")
    for kind in INPUT_KINDS:
        (shared,) = set(kind.answers[first:])
        answers = " | ".join([*kind.answers[:first], shared])
        lines.append(f"| {kind.name} | {answers} | {kind.remark} |")
    return "\n".join(lines)
