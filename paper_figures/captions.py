"""What is run: the paper's protocol, the reduced one that fits into ten minutes, and the words for either."""

from pathlib import Path
from typing import NamedTuple

from analysis import linear, mnist, mnli

__all__ = ["PAPER", "REDUCED", "Size", "is_papers", "records_of", "stated"]


class Size(NamedTuple):
    """How much of a study is run."""

    seeds: int
    epochs: int


def _lenet5(folder, **size):
    from analysis import lenet5  # which needs torch

    return lenet5.main(folder, **size)


PAPER = {
    "linear": Size(seeds=5, epochs=100),
    "mnist": Size(seeds=3, epochs=20),
    "lenet5": Size(seeds=3, epochs=20),
    "mnli": mnli.PAPER,
}
REDUCED = {
    "linear": PAPER["linear"],
    "mnist": Size(seeds=2, epochs=3),
    "lenet5": Size(seeds=1, epochs=1),
    "mnli": mnli.REDUCED,
}
_STUDIES = {"linear": linear.main, "mnist": mnist.main, "lenet5": _lenet5, "mnli": mnli.main}


def records_of(study, size, folder, *, workers=None):
    """Records of a study, running what has none yet; reduced and full ones lie side by side."""
    return _STUDIES[study](Path(folder) / study, **size._asdict(), workers=workers)


def stated(records):
    """Size of the study that these are the records of, in words, and whether it is the paper's."""
    size = _words(_size(records))
    if is_papers(records):
        return f"{size}, as in the paper"
    return f"{size}, reduced from the paper's {_words(PAPER[records[0]['config']['study']])}"


def is_papers(records):
    """True if as much was run as in the paper."""
    return _size(records) == PAPER[records[0]["config"]["study"]]


def _size(records):
    config = records[0]["config"]
    return Size(len({record["config"]["seed"] for record in records}), config["epochs"])


def _words(size):
    return " × ".join(f"{count} {name if count != 1 else name[:-1]}" for name, count in size._asdict().items())
