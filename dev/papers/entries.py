"""What an entry of docs/papers.md consists of: published figures, and where ours are recorded."""

from typing import NamedTuple, Tuple, Union

# What a row lacks that was not measured.
DATA = "data"  # data that are not free, or too large for the machine of the records
GPU = "GPU"
CODE = "code"  # the system is not part of this project
TIME = "time"  # everything is there, but the run takes too long for a few CPU cores
MISSING = (DATA, GPU, CODE, TIME)

Paths = Tuple[str, ...]


class Figure(NamedTuple):
    """Where a figure is recorded.

    Attributes:
        records: globs below results/. The first one that matches any file is used. There is a
            figure for each of its files, and the mean over them is shown.
        path: keys that lead to the figure in a record, separated by "/". ``*`` stands for all items
            of a list, and ``=NAME`` for the item whose "name" is NAME.
    """

    records: Paths
    path: str


class Measured(NamedTuple):
    """Our figures of a row.

    Attributes:
        figures: one for each column.
        data: the data in words, with everything that differs from other rows.
        training: glob below results/ of the trainings, if the records are evaluations of weights.
        seconds: paths of the CPU seconds of training, as in :class:`Figure`, in records that
            ``rpe-d2 train`` does not write. The means over the records are added up.
        digits: digits after the point.
        factor: factor of the recorded figures, such as 100 for percent.
    """

    figures: Tuple[Figure, ...]
    data: str
    training: str = ""
    seconds: Paths = ()
    digits: int = 1
    factor: float = 1.0


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        name: the system.
        published: its published figures as they are shown, "–" where the source has none. Empty for
            a row that the source does not have.
        ours: our figures, or a word of ``MISSING``.
        config: the configuration to measure it with, below configs/. A row with figures shows the
            configuration of its records instead.
        changes: overrides of the configuration.
    """

    name: str
    published: Tuple[str, ...]
    ours: Union[Measured, str]
    config: str = ""
    changes: str = ""


class Table(NamedTuple):
    """A table of a source.

    Attributes:
        name: its name on the page.
        subject: what its rows are.
        columns: what the figures are.
        source: the file of the published figures, below the shared folder of the sources.
        caption: where the figures were published, in a sentence.
        rows: its rows.
        ours: what our figures are, if they are not the same as the published ones.
        by_column: whether a line of the source is a column of this table.
        wide: whether published figures have columns of their own.
    """

    name: str
    subject: str
    columns: Tuple[str, ...]
    source: str
    caption: str
    rows: Tuple[Row, ...]
    ours: Tuple[str, ...] = ()
    by_column: bool = False
    wide: bool = False


def measured(
    records: Union[str, Paths], *paths: str, data: str, **others: Union[str, int, float, Paths]
) -> Measured:
    """Returns our figures of a row whose columns are in the same records.

    Args:
        records: a glob below results/, or several as in :class:`Figure`.
        paths: the path of each figure.
        data: the data in words.
        others: further attributes of :class:`Measured`.
    """
    globs = (records,) if isinstance(records, str) else records
    return Measured(tuple(Figure(globs, path) for path in paths), data, **others)
