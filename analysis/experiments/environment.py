"""Where a run took place: machine, versions, threads, commit, time."""

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_info

__all__ = ["environment"]


def environment() -> dict[str, Any]:
    """Describe where a run takes place: machine, versions, threads, commit, time.

    Returns
    -------
    dict
        ``time`` (UTC), ``python``, ``platform``, ``cpu``, ``cpu_count``, ``gpu`` (None unless torch is using one),
        ``thread_pools`` (a list: library, version, the processor that OpenBLAS's kernels are for, number of threads),
        ``versions`` (torch, transformers, peft, jax and matplotlib only where they are imported; None: not installed)
        and ``git``, the project's ``commit`` and whether it is ``dirty``: some Python file is not as committed. ``git``
        is None outside a checkout.
    """
    torch = sys.modules.get("torch")
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch and torch.cuda.is_initialized() else None,
        "thread_pools": [
            {
                "library": pool["internal_api"],
                "version": pool["version"],
                "kernels": pool.get("architecture"),
                "threads": pool["num_threads"],
            }
            for pool in threadpool_info()
        ],
        "versions": _versions(),
        "git": _git_state(),
    }


def _versions():
    names = ["lorsum", "numpy", "scipy", "numba"]
    names += [name for name in ("matplotlib", "torch", "transformers", "peft", "jax") if name in sys.modules]
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


@cache
def _cpu_name():
    if sys.platform == "darwin":
        name = _output("sysctl", "-n", "machdep.cpu.brand_string")
    else:
        cpuinfo = Path("/proc/cpuinfo")
        found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
        name = found and found[1]
    return name or platform.processor() or platform.machine()


@cache  # the code that runs is the code that was imported, whatever happens to the files later
def _git_state():
    root = Path(__file__).resolve().parents[2]
    found = _output("git", "-C", str(root), "rev-parse", "--show-toplevel", "HEAD")
    if found is None or Path(found.splitlines()[0]).resolve() != root:
        return None  # no checkout, or installed inside somebody else's
    # Python files only: the records themselves are new files too
    changed = _output("git", "-C", str(root), "status", "--porcelain", "--", "*.py")
    return {"commit": found.splitlines()[1], "dirty": bool(changed)}


def _output(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
