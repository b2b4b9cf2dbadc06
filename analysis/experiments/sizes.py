"""How much of a study is run: as in the paper, or less."""

from collections.abc import Sequence
from typing import NamedTuple

from analysis.experiments.records import Record

__all__ = ["Size", "size_of"]


class Size(NamedTuple):
    """How often and how long every method is trained."""

    seeds: int
    epochs: int

    def __str__(self) -> str:
        """``3 seeds × 20 epochs``."""
        return " × ".join(f"{count} {name if count != 1 else name[:-1]}" for name, count in self._asdict().items())


def size_of(records: Sequence[Record]) -> Size:
    """The size of the study that these are the records of."""
    seeds = {record["config"]["seed"] for record in records}
    return Size(len(seeds), records[0]["config"]["epochs"])
