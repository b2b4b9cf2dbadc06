"""Measured runs: recorded one by one, collected in one file beside the page, and where they were measured."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from analysis.experiments.output import write
from analysis.experiments.records import read_record, record_path, run_study, write_record

__all__ = ["collected", "four_digits", "having", "provenance", "recorded", "write_page"]


def recorded(run: Callable[[dict], dict], configs: list[dict], folder: Path, *, again: bool) -> list[dict]:
    """The records of all configurations; ``again`` measures what has one already.

    One process: what is compared takes turns in it.
    """
    if again:
        for config in configs:
            record_path(folder, config).unlink(missing_ok=True)
    try:
        return run_study(run, configs, folder, workers=1)
    except KeyboardInterrupt:
        sys.exit("Interrupted. Finished runs are recorded: the same command goes on from there.")


def write_page(folder: Path, name: str, page: str, records: list[dict]) -> None:
    """Write a page, and beside it the records that it was written from, with the environment of the last one."""
    write(folder / f"{name}.md", page)
    parts = [{"config": r["config"], "results": r["results"], "seconds": r["seconds"]} for r in records]
    write_record(folder / f"{name}.json", {"environment": records[-1]["environment"], "records": parts})


def collected(path: Path) -> list[dict]:
    """The records that `write_page` wrote beside a page: ``page(collected("docs/benchmarks.json"))`` is that page."""
    content = read_record(path)
    return [{**record, "environment": content["environment"]} for record in content["records"]]


def having(records: list[dict], **wanted: Any) -> list[dict]:
    """The records whose configurations have these entries."""
    return [r for r in records if all(r["config"].get(name) == value for name, value in wanted.items())]


def provenance(command: str, environment: dict) -> str:
    """The command that wrote a page, and where it measured."""
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version)
    commit = f"commit {environment['git']['commit'][:7]}" if environment["git"] else "no checkout"
    return (
        f"Written by `{command}` from its records: {environment['cpu']}, {environment['cpu_count']} CPUs, "
        f"{environment['time'][:10]}, {commit}; Python {environment['python']}, {versions}."
    )


def four_digits(seconds: dict[str, Any]) -> dict[str, Any]:
    """Name → seconds, lists of any depth: more digits no clock is worth."""
    rounded = np.vectorize(lambda value: float(f"{value:.4g}"))
    return {name: rounded(taken).tolist() for name, taken in seconds.items()}
