"""List the studies and the benchmarks, or run one by its name: ``python -m analysis [NAME [OPTIONS]]``.

``python -m analysis NAME --help`` tells the options of one. All keep records: killed and started again, they go on
from there.
"""

import sys
from collections.abc import Sequence

import rich.box
from rich.console import Console
from rich.table import Table

from analysis import benchmarks, studies
from analysis.experiments.command_line import Study

__all__ = ["main"]

_GROUPS = {"studies": studies.STUDIES, "benchmarks": benchmarks.STUDIES}
_BY_NAME = {study.name: study for group in _GROUPS.values() for study in group}


def main(arguments: Sequence[str] | None = None) -> int | None:
    """Run what the arguments name, with the rest of them; the exit status."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in _BY_NAME:
        return _BY_NAME[name].command(rest)
    if name in ("-h", "--help"):
        print(__doc__)
        for title, group in _GROUPS.items():
            Console().print(_listed(title, group))
        return None
    print(f"{name!r} is none of the studies and benchmarks: {', '.join(_BY_NAME)}.", file=sys.stderr)
    return 2


def _listed(title: str, group: Sequence[Study]) -> Table:
    table = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(title, style="bold", no_wrap=True)
    table.add_column("question")
    table.add_column("takes (2 cores)", no_wrap=True)
    for study in group:
        table.add_row(study.name, study.question, study.takes)
    return table


if __name__ == "__main__":
    sys.exit(main())
