"""``@kernel``: a function compiled by Numba, whose machine code is kept on disk for later processes.

Machine code has that of all functions that it calls in it, but Numba's own cache looks for changes only in the file of
the function itself. Here a file is named for all that its code was made from: the bytecode of the modules with kernels,
the signature, the processor, versions and settings. So none is ever out of date, and processes that compile at the same
time write different files, or the same. Where nothing can be written each process compiles for itself, and what is
damaged is compiled again.
"""

import logging
import os
import pickle
import sys
import uuid
from contextlib import suppress
from functools import cache, partial
from hashlib import sha256
from importlib.util import cache_from_source
from pathlib import Path
from types import CodeType
from typing import Any

import llvmlite
import numba
import numpy as np
from numba import config, njit
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.compiler_lock import global_compiler_lock
from numba.core.serialize import dumps
from numba.misc.appdirs import AppDirs

CHECKSUM = sha256().digest_size
# Numba's settings that machine code depends on, beside those of the processor, which it lists itself
SETTINGS = ("OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "BOUNDSCHECK", "DEBUGINFO_DEFAULT", "DISABLE_INTEL_SVML")

_modules: dict = {}  # by name, this one and those with kernels: how each was found, and a digest of its bytecode


def kernel(function=None, /, **options):
    """A function that Numba compiles, by ``njit`` with these options.

    What it calls, and each constant that it knows, is to be defined in a module that has kernels.
    """
    if function is None:
        return partial(kernel, **options)
    compiled = njit(**options)(function)
    compiled._cache = _Cache(f"{function.__module__}.{function.__name__}", _bytecode_so_far(function.__module__))
    return compiled


class _Cache(NullCache):
    """What Numba asks for the machine code of one function before it compiles, and gives it to afterwards."""

    def __init__(self, name, bytecode):
        self._name, self._bytecode = Path(cache_from_source(f"{name}.py")).stem, bytecode

    def load_overload(self, signature, target_context):
        """The result of an earlier compilation, or None."""
        target_context.refresh()
        name = self._file_name(signature, target_context.codegen())
        for folder in _folders():
            try:
                data = (folder / name).read_bytes()
            except OSError:
                continue
            if sha256(data[CHECKSUM:]).digest() == data[:CHECKSUM]:
                return CompileResult._rebuild(target_context, *pickle.loads(data[CHECKSUM:]))
        return None

    def save_overload(self, signature, result):
        """Keep the result of a compilation, in the place of those from bytecode that is no more."""
        if result.library.has_dynamic_globals:  # addresses of this process, as NUMBA_OPT=0 leaves some
            return
        data = dumps(result._reduce())
        try:
            folder = _folders()[-1]
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / self._file_name(signature, result.codegen), sha256(data).digest() + data)
            for old in folder.glob(f"{self._name}-*.nbc"):
                if not old.name.startswith(f"{self._name}-{self._bytecode}-"):
                    old.unlink(missing_ok=True)
        except OSError as error:
            _say_that_nothing_is_kept(error.strerror)

    def _file_name(self, signature, codegen):
        versions = numba.__version__, llvmlite.__version__, np.__version__
        settings = [str(getattr(config, name, None)) for name in SETTINGS]
        return f"{self._name}-{self._bytecode}-{_digest((signature, codegen.magic_tuple(), versions, settings))}.nbc"


def _digest(contents):
    return sha256(repr(contents).encode()).hexdigest()[:16]


def _write(path, data):
    """The whole file or none, whoever reads or writes it meanwhile."""
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _folders():
    """Where to look for machine code, in Numba's order as far as the first folder that can be written to; at least one.

    That is one in NUMBA_CACHE_DIR where there is such, else beside the modules, else among the user's caches.
    """
    chosen = config.CACHE_DIR  # type: ignore[attr-defined]  # set when Numba starts
    package, user = Path(__file__).parent, Path(AppDirs("numba", False).user_cache_dir)
    name = f"lorsum_{_digest(package)}"
    places = [Path(chosen) / name] if chosen else []
    places.append(package / "__pycache__")
    if user.is_absolute():  # there is a home
        places.append(user / name)
    for i, folder in enumerate(places):
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return places[: i + 1]
    return places


@cache
def _say_that_nothing_is_kept(reason):
    """Once a process; not a warning, which could be an error where the result is as good as ever."""
    logging.getLogger("lorsum").warning(
        "No compiled code can be kept in %s (%s): lorsum compiles anew in each process, for about half a minute. "
        "Set NUMBA_CACHE_DIR to a folder that can be written to.",
        _folders()[-1],
        reason,
    )


def _bytecode_so_far(name):
    """A digest of the bytecode of this module, the one of that name, and all with kernels that it has imported."""
    for module in (__name__, name):
        spec: Any = sys.modules[module].__spec__
        if module not in _modules or _modules[module][0] is not spec:  # a module that is loaded anew has a new one
            _modules[module] = spec, _digest(_contents(spec.loader.get_code(module)))
    return _digest([bytecode for _, bytecode in _modules.values()])


def _contents(code):
    """What a code object does, wherever it is and however it was loaded."""
    if isinstance(code, CodeType):
        names = code.co_name, code.co_varnames, code.co_names, code.co_freevars, code.co_cellvars
        return code.co_code, code.co_exceptiontable, names, _contents(code.co_consts)
    if isinstance(code, (tuple, frozenset)):
        contents = [repr(_contents(x)) for x in code]
        return contents if isinstance(code, tuple) else sorted(contents)
    return code


if hasattr(os, "register_at_fork"):  # in a child forked while another thread compiles, nobody would release this lock
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )
