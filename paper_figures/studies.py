"""The studies whose records are drawn, as much of them as in the paper or less, and the words for it."""

from collections.abc import Sequence
from pathlib import Path

from analysis.experiments.records import Record
from analysis.experiments.sizes import size_of
from analysis.studies import linear, mnist
from analysis.studies.lenet5 import study as lenet5
from analysis.studies.mnli import study as mnli

__all__ = ["is_papers", "records_of", "stated"]

_STUDIES = {"linear": linear, "mnist": mnist, "lenet5": lenet5, "mnli": mnli}


def records_of(study: str, folder: Path, *, full: bool, workers: int | None = None) -> list[Record]:
    """Records of a study, running what has none yet; those of the paper's size and of less lie side by side."""
    module = _STUDIES[study]
    size = module.PAPER if full else module.REDUCED
    return module.main(folder / study, workers=workers, **size._asdict())


def stated(records: Sequence[Record]) -> str:
    """How much was run, in words, and whether it is as much as in the paper."""
    if is_papers(records):
        return f"{size_of(records)}, as in the paper"
    return f"{size_of(records)}, reduced from the paper's {_papers(records)}"


def is_papers(records: Sequence[Record]) -> bool:
    """True if as much was run as in the paper."""
    return size_of(records) == _papers(records)


def _papers(records):
    return _STUDIES[records[0]["config"]["study"]].PAPER
