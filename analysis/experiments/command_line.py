"""What a study or a benchmark is to the command line: a question, how long it takes, and options of common names."""

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Study", "count", "parser"]


class Study(NamedTuple):
    """One that ``python -m analysis`` lists and runs by its name.

    The lists stand in ``analysis.studies`` and ``analysis.benchmarks``, so that listing imports none of the modules,
    some of which need PyTorch or JAX. A module has ``command(arguments=None)``, which runs it as from the command
    line and returns the exit status, None for success.
    """

    name: str
    question: str
    takes: str
    module: str

    def command(self, arguments: Sequence[str] | None = None) -> int | None:
        """Run it with arguments of the command line."""
        return importlib.import_module(self.module).command(arguments)


def count(text: str) -> int:
    """A whole number from 1 on, as an argument."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


_OPTIONS: dict[str, dict[str, Any]] = {
    "folder": {"flags": ["--records"], "type": Path, "help": "folder of the records"},
    "output": {"type": Path, "help": "folder to write the results to"},
    "seeds": {"type": count, "help": "repetitions with other random numbers"},
    "epochs": {"type": count, "help": "epochs of training"},
    "workers": {"type": count, "help": "processes (default: one for each CPU)"},
    "again": {"action": "store_true", "help": "run anew what is recorded"},
}


def parser(name: str, description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """A parser of the options that studies and benchmarks share, to which a module adds its own.

    Parameters
    ----------
    name : str
        What follows ``python -m``.
    description : str
        The module's docstring.
    **defaults
        The option's name → its default: ``folder`` (``--records`` on the command line), ``output``, ``seeds``,
        ``epochs``, ``workers`` and ``again``.

    Examples
    --------
    >>> options = parser("analysis.studies.linear", "", folder="records/linear", seeds=5).parse_args(["--seeds", "2"])
    >>> options.seeds, options.folder.name
    (2, 'linear')
    """
    made = argparse.ArgumentParser(
        prog=f"python -m {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for option, default in defaults.items():
        settings = _OPTIONS[option].copy()
        flags = settings.pop("flags", [f"--{option}"])
        if default not in (None, False):
            settings["help"] += " (default: %(default)s)"
        made.add_argument(*flags, dest=option, default=default, **settings)
    return made
