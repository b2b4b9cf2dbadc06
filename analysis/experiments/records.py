"""Records of numerical experiments: one configuration, one run, one JSON file.

A study is a function and a list of configurations. `run_study` runs what has no record yet, so a study that was killed
is started again by the same call; `read_records` is how figures and notebooks get at the results.

Records are strict JSON. JSON has no word for the non-finite floats, so these are written as the strings ``"inf"``,
``"-inf"`` and ``"nan"`` and are floats again when read; arrays and tuples become lists.
"""

import copy
import hashlib
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, TypeAlias

from tqdm import tqdm

from analysis.experiments.environment import environment
from analysis.experiments.output import delete_leftovers, write
from analysis.experiments.workers import available_cpus, check_importable, outcomes

__all__ = ["Record", "read_record", "read_records", "record_path", "run_study", "write_record"]

Record: TypeAlias = dict[str, Any]  # config, results, environment, seconds
_Path: TypeAlias = str | os.PathLike

_NON_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
_SLUG_KEYS = ("study", "framework", "task", "method", "optimizer", "iters", "rank", "seed")


def run_study(
    run: Callable[[dict], dict],
    configs: Iterable[dict],
    folder: _Path,
    *,
    workers: int | None = None,
    progress: bool = True,
) -> list[Record]:
    """Run every configuration that has no record yet, and return the records of all.

    Each record is written the moment its run finishes. Killed at any moment and called again, the study loses at most
    the runs that were in progress and repeats no finished one.

    Parameters
    ----------
    run : callable
        ``run(config)`` returns a dict of results. It should take all its randomness from the configuration's seed, and
        for more than one worker it must be importable: defined at the top level of a module.
    configs : iterable of dict
        The configurations. Equal ones are run once.
    folder : path-like
        Where the records are; made if missing.
    workers : int, optional
        Number of processes. Default: the number of available CPUs. 1 runs in this process, as a notebook needs for a
        function defined in one of its cells.
    progress : bool, optional
        Show a progress bar over the runs.

    Returns
    -------
    list of dict
        In the order of ``configs``; the entries of a record are ``config``, ``results``, ``environment`` and
        ``seconds`` (wall time of the run). They are read back from the files, so that a new run and an old one look
        alike.

    Raises
    ------
    ValueError
        If a record is damaged or holds another configuration, before anything is run.
    RuntimeError
        If runs failed, naming their configurations, once all the others have finished and are recorded; or if a
        worker process died.

    Notes
    -----
    A run has one thread of BLAS, OpenMP, numba and torch, so that the number of workers changes neither load nor
    rounding. Workers are spawned, since forking a process that has BLAS or numba threads can deadlock: a script that
    calls this needs the usual ``if __name__ == "__main__":``.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> def square(config):
    ...     return {"square": config["seed"] ** 2}
    >>> with TemporaryDirectory() as folder:
    ...     records = run_study(square, [{"seed": 2}, {"seed": 3}], folder, workers=1, progress=False)
    >>> [record["results"]["square"] for record in records]
    [4, 9]
    """
    folder, configs = Path(folder), list(configs)
    workers = available_cpus() if workers is None else workers
    if workers < 1:
        raise ValueError(f"`workers` was {workers}; it should be 1 or more.")
    delete_leftovers(folder)
    asked = {record_path(folder, config): config for config in configs}
    records = {path: _read_matching(path, config) for path, config in asked.items() if path.exists()}
    pending = {path: config for path, config in asked.items() if path not in records}
    workers = min(workers, len(pending))
    if workers > 1:
        check_importable(run)

    study = configs[0].get("study", folder.name) if configs else folder.name
    bar = tqdm(total=len(asked), initial=len(records), desc=str(study), unit="run", disable=not progress)
    failures = _run_pending(run, pending, workers, bar)
    if failures:
        raise RuntimeError(_failure_message(failures, pending))
    records |= {path: _read_matching(path, config) for path, config in pending.items()}
    return [records[record_path(folder, config)] for config in configs]


def _run_pending(run, pending, workers, bar):
    """Run what is pending, path → configuration; return path → traceback of the failures."""
    failures = {}
    tasks = {path: (run, config, path) for path, config in pending.items()}
    # closing: an interrupt that strikes between two outcomes would else leave the workers running
    with bar, closing(outcomes(_run_one, tasks, workers)) as finished:
        for path, failure in finished:
            if failure:
                failures[path] = failure
                bar.write(f"failed: {path.stem}: {failure.splitlines()[-1]}", file=sys.stderr)
            bar.set_postfix_str(f"{'failed' if failure else 'finished'} {_slug(pending[path])}", refresh=False)
            bar.update()
    return failures


def _run_one(run, config, path):
    start = time.perf_counter()
    results = run(copy.deepcopy(config))  # a copy: what is recorded is what was asked
    seconds = time.perf_counter() - start
    if not isinstance(results, dict):
        raise TypeError(f"`run` returned a {type(results).__name__}; it should return a dict of results.")
    write_record(path, {"config": config, "results": results, "environment": environment(), "seconds": seconds})


def _failure_message(failures, pending):
    lines = [f"{len(failures)} of {len(pending)} runs failed; the others are recorded and will not be repeated."]
    lines += [f"{pending[path]}: {failure.splitlines()[-1]}" for path, failure in failures.items()]
    return "\n".join([*lines, "", "The first failure:", next(iter(failures.values()))])


def _read_matching(path, config):
    record = _read_with_config(path)
    if _canonical(record["config"]) != _canonical(config):
        raise ValueError(
            f"{path} holds another configuration, {record['config']}, than the one it is named for, {config}: "
            "it was edited or renamed. Move it out of the way and run the study again."
        )
    return record


def record_path(folder: _Path, config: dict) -> Path:
    """Path of a configuration's record: readable, and different for every configuration.

    The name is a slug of what usually tells runs apart and ten digits of the SHA-256 of the configuration as canonical
    JSON. Neither the order of the keys nor the type of a number counts: 1, 1.0 and ``numpy.int64(1)`` are equal here.

    Parameters
    ----------
    folder : path-like
        Folder of the records.
    config : dict
        The configuration.

    Returns
    -------
    pathlib.Path

    Examples
    --------
    >>> record_path("records", {"study": "linear", "method": "OPLoRA", "iters": 8, "lr": 0.5, "seed": 0}).name
    'linear-oplora-iters8-seed0-e7f459c7c3.json'
    """
    digest = hashlib.sha256(_canonical(config).encode()).hexdigest()
    return Path(folder) / f"{_slug(config)}-{digest[:10]}.json"


def write_record(path: _Path, record: Record) -> None:
    """Write a record, whole or not at all.

    Parameters
    ----------
    path : path-like
        The file; its folder is made if missing.
    record : dict
        Nested dicts and lists of JSON's types; arrays (NumPy, PyTorch, JAX), their scalars and non-finite floats are
        converted.

    Raises
    ------
    TypeError
        If an entry has no place in JSON, or a key is not a string.
    ValueError
        If a string is one of those that stand for the non-finite floats.
    """
    lines = [f"{json.dumps(key)}: {json.dumps(entry, allow_nan=False)}" for key, entry in _plain(record).items()]
    write(path, "{\n" + ",\n".join(lines) + "\n}\n")


def read_record(path: _Path) -> Record:
    """Read a record that `write_record` wrote.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    dict

    Raises
    ------
    ValueError
        If the file is damaged.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise ValueError(f"expected an object, found a {type(record).__name__}")
    except ValueError as error:
        raise _damaged(path, error) from error
    return _restored(record)


def read_records(folder: _Path, /, **filters: Any) -> list[Record]:
    """Read a folder's records, in the order of their names.

    Parameters
    ----------
    folder : path-like
        Folder of the records.
    **filters
        Entries that the configuration must have: ``read_records(folder, method="oplora", seed=0)``.

    Returns
    -------
    list of dict

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If a file is damaged or is no record.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"`folder` was {folder}, which is not a folder: run its study first.")
    wanted = {key: _canonical(value) for key, value in filters.items()}
    records = map(_read_with_config, sorted(folder.glob("*.json")))
    return [record for record in records if _matches(record["config"], wanted)]


def _matches(config, wanted):
    return all(key in config and _canonical(config[key]) == value for key, value in wanted.items())


def _read_with_config(path):
    record = read_record(path)
    if not isinstance(record.get("config"), dict):
        raise _damaged(path, "it has no configuration")
    return record


def _damaged(path, reason):
    return ValueError(f"{path} is not a whole record ({reason}): delete it and run its study again, for this run only.")


def _slug(config):
    values = ((key, config[key]) for key in _SLUG_KEYS if config.get(key) is not None)
    words = [value if isinstance(value, str) else f"{key}{_plain(value)}" for key, value in values]
    return re.sub(r"[^a-z0-9.]+", "-", "-".join(words).lower()).strip("-.")[:80] or "record"


def _canonical(value):
    """JSON text that is the same for equal values: sorted keys and, as in RFC 8785, no difference between 1 and 1.0."""
    value = json.loads(json.dumps(_plain(value)), parse_float=_shortest)
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _shortest(text):
    number = float(text)
    return int(number) if number.is_integer() else number


def _plain(value, name="record"):
    """Convert to what JSON can say; `name` is the entry's, for the error."""
    if hasattr(value, "tolist"):  # arrays and scalars of every framework
        value = value.tolist()
    if isinstance(value, dict):
        if odd := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"`{name}` has the key {odd[0]!r}; keys should be strings.")
        return {key: _plain(entry, f"{name}[{key!r}]") for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry, f"{name}[{index}]") for index, entry in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str) and value in _NON_FINITE:
        raise ValueError(f"`{name}` was the string {value!r}, which means the float in a record: use another word.")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"`{name}` was a {type(value).__name__}: use numbers, strings, lists, dicts, arrays.")


def _restored(value):
    if isinstance(value, dict):
        return {key: _restored(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_restored(entry) for entry in value]
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value
