"""What is run: the paper's protocol, the reduced one that fits into ten minutes, and the words for either."""

from pathlib import Path
from typing import NamedTuple

from analysis import linear, mnist

__all__ = ["PAPER", "REDUCED", "Size", "records_of", "stated"]


class Size(NamedTuple):
    """How much of a study is run."""

    seeds: int
    epochs: int


PAPER = {"linear": Size(seeds=5, epochs=100), "mnist": Size(seeds=3, epochs=20)}
REDUCED = {"linear": PAPER["linear"], "mnist": Size(seeds=2, epochs=3)}
_STUDIES = {"linear": linear.main, "mnist": mnist.main}


def records_of(study, size, folder, *, workers=None):
    """Records of a study, running what has none yet; reduced and full ones lie side by side."""
    return _STUDIES[study](Path(folder) / study, **size._asdict(), workers=workers)


def stated(records):
    """Size of the study that these are the records of, in words, and whether it is the paper's."""
    config = records[0]["config"]
    size = Size(len({record["config"]["seed"] for record in records}), config["epochs"])
    paper = PAPER[config["study"]]
    if size == paper:
        return f"{_words(size)}, as in the paper"
    return f"{_words(size)}, reduced from the paper's {_words(paper)}"


def _words(size):
    return " × ".join(f"{count} {name if count != 1 else name[:-1]}" for name, count in size._asdict().items())
