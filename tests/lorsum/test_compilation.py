"""Compiled kernels are kept where that is possible, used while they are right, and can be done without."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numba.core.dispatcher import Dispatcher

import lorsum as ls
from lorsum import _blas, _cache, _kernels

PACKAGE = Path(ls.__file__).parent

# Kernels that take a second to compile, from all files that have any: what they give, and how many were compiled, of
# those that are called from here
SEVERAL = """
import numpy as np
from lorsum import _blas, _kernels

A, Y = np.array([[1.0, 2.0, 4.0]]), np.empty((1, 3))
_kernels.combine(((A, False),), np.array([[3.0]]), Y, (_blas.GEMM[8], _blas.GEMM[8]))
_, gram, spread = _kernels._products_by_gram(np.eye(2), np.array([[1.0, 2.0], [0.0, 1.0]]))
print(*Y[0], *gram.ravel(), round(spread**2, 9))
print(sum([sum(f.stats.cache_misses.values()) for f in (_kernels.combine, _kernels._products_by_gram)]))
"""
GIVEN = [3.0, 6.0, 12.0, 1.0, 2.0, 2.0, 5.0, 1.0]
# The same of one small kernel
ONE = """
import numpy as np
from lorsum import _kernels

print(*_kernels.transposed(np.array([[1.0, 2.0], [0.0, 1.0]])).ravel())
print(sum(_kernels.transposed.stats.cache_misses.values()))
"""
TRANSPOSED = [1.0, 0.0, 2.0, 1.0]


def started(code, cache, package=PACKAGE, **variables):
    """A process of its own that runs some code with the package that is at a place."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("NUMBA_", "PYTHON"))}
    environment |= {"PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1", "NUMBA_CACHE_DIR": str(cache)}
    command = [sys.executable, "-W", "error", "-c", code]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment | variables, cwd=cache.parent, text=True, **pipes)


def ended(process):
    """The lines that a process has written, as numbers, and what it has complained of."""
    output, complaints = process.communicate(timeout=300)
    assert process.returncode == 0, complaints
    return [[float(word) for word in line.split()] for line in output.splitlines()], complaints


def run(*args, **variables):
    numbers, complaints = ended(started(*args, **variables))
    assert complaints == ""
    return numbers


def test_all_kernels_are_kept():
    for module in (_blas, _kernels):
        compiled = [f for f in vars(module).values() if isinstance(f, Dispatcher)]
        assert compiled
        assert all(type(f._cache) is _cache._Cache for f in compiled)


def test_later_processes_compile_only_for_other_settings(tmp_path):
    cache = tmp_path / "cache"
    assert run(ONE, cache) == [TRANSPOSED, [1]]
    assert run(ONE, cache) == [TRANSPOSED, [0]]
    assert run(ONE, cache, NUMBA_BOUNDSCHECK="1") == [TRANSPOSED, [1]]
    assert run(ONE, cache, NUMBA_OPT="0") == [TRANSPOSED, [1]]
    assert run(ONE, cache) == [TRANSPOSED, [0]]


def test_an_upgrade_of_any_file_runs_the_new_code(tmp_path):
    package, cache = tmp_path / "lorsum", tmp_path / "cache"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    assert run(SEVERAL, cache, package) == [GIVEN, [2]]
    changes = [  # as long as what they replace, and as old, as the files of two wheels may be
        ("number(1), *first", "number(2), *first", [6.0, 12.0, 24.0, *GIVEN[3:]]),
        ("np.ascontiguousarray(A.T)", "np.ascontiguousarray(A+A)", [*GIVEN[:3], 2.0, 8.0, 0.0, 2.0, 2.5]),
        ("spread = 1.0", "spread = 9.0", [*GIVEN[:-1], 9.0]),
    ]
    for old, new, result in changes:
        (path,) = [path for path in package.glob("*.py") if old in path.read_text("utf-8")]
        text, stat = path.read_text("utf-8"), path.stat()
        path.write_text(text.replace(old, new), "utf-8")
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert path.stat().st_size == stat.st_size
        numbers, _ = run(SEVERAL, cache, package)
        assert numbers == result
        path.write_text(text, "utf-8")


def test_code_of_an_earlier_version_makes_way(tmp_path):
    package, cache = tmp_path / "lorsum", tmp_path / "cache"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    run(ONE, cache, package)
    (before,) = cache.rglob("*.nbc")
    with (package / "_kernels.py").open("a") as file:
        file.write("ANOTHER = 1\n")
    assert run(ONE, cache, package) == [TRANSPOSED, [1]]
    (after,) = cache.rglob("*.nbc")
    assert after.name != before.name


@pytest.mark.parametrize("damaged", [lambda data: data[:-1], lambda data: b"", lambda data: data[:-9] + bytes(9)])
def test_damaged_code_is_compiled_again(damaged, tmp_path):
    cache = tmp_path / "cache"
    run(ONE, cache)
    (path,) = cache.rglob("*.nbc")
    path.write_bytes(damaged(path.read_bytes()))
    assert run(ONE, cache) == [TRANSPOSED, [1]]
    assert run(ONE, cache) == [TRANSPOSED, [0]]


# --- places ---


def zipped(folder):
    """The package in an archive, beside which nothing can be written."""
    path = folder / "packages.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in PACKAGE.rglob("*.py"):
            archive.write(file, file.relative_to(PACKAGE.parent))
    return path / "lorsum"


def test_code_of_a_package_in_an_archive_is_kept(tmp_path):
    package, cache = zipped(tmp_path), tmp_path / "cache"
    assert run(ONE, cache, package) == [TRANSPOSED, [1]]
    assert run(ONE, cache, package) == [TRANSPOSED, [0]]


def test_where_nothing_can_be_written_kernels_are_compiled_and_one_line_says_so(tmp_path):
    (tmp_path / "file").touch()
    nowhere = str(tmp_path / "file" / "folder")
    variables = {"HOME": nowhere, "XDG_CACHE_HOME": nowhere, "LOCALAPPDATA": nowhere}
    numbers, complaint = ended(started(ONE, tmp_path / "file", zipped(tmp_path), **variables))
    assert numbers == [TRANSPOSED, [1]]
    assert complaint.count("\n") == 1
    assert "Set NUMBA_CACHE_DIR to a folder" in complaint


# --- processes and threads ---


def test_processes_that_compile_at_once(tmp_path):
    cache = tmp_path / "cache"
    single = SEVERAL.replace("[8]", "[4]", 1).replace("4.0]]", "4.0]], np.float32").replace("(1, 3)", "(1, 3), 'f4'")
    processes = [started(code, cache) for code in (SEVERAL, SEVERAL, single)]
    for process in processes:
        (numbers, _), complaints = ended(process)
        assert numbers == GIVEN
        assert complaints == ""
    assert run(SEVERAL, cache) == run(single, cache) == [GIVEN, [0]]


def test_threads_that_compile_at_once(tmp_path):
    code = """
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
import numpy as np
import lorsum as ls

start = Barrier(8)
def work(i):
    from lorsum import _numba
    start.wait()
    kernels, blas = _numba.loaded(np.dtype(np.float64))
    A, Y = np.array([[1.0, 2.0, 4.0]]), np.empty((1, 3))
    kernels.combine(((A, False),), np.array([[float(i)]]), Y, blas)
    return Y[0]
with ThreadPoolExecutor(8) as pool:
    for numbers in pool.map(work, range(8)):
        print(*numbers)
"""
    assert run(code, tmp_path / "cache") == [[i, 2 * i, 4 * i] for i in range(8)]


# Batches in the threads of this process, and then in others that are started in all ways
BATCHES = """
import multiprocessing, sys
import numpy as np
import lorsum as ls
from lorsum.alternating import numba as from_problems
from numba import config

def work(seed):
    from_problems.WORTH_A_THREAD, config.NUMBA_NUM_THREADS = 0, 3
    rng = np.random.default_rng(seed)
    W, G = (ls.LowRank(rng.normal(size=(6, 40, r)), rng.normal(size=(6, 30, r))) for r in (3, 5))
    X = ls.lorsum(W - 0.1 * G, iters=2)
    return *X.U.ravel(), *X.V.ravel()

if __name__ == "__main__":
    print(*work(0))
    for method in multiprocessing.get_all_start_methods():
        with multiprocessing.get_context(method).Pool(2) as pool:
            for numbers in pool.map(work, [0, 0]):
                print(*numbers)
"""


def test_processes_of_all_kinds_after_threads(tmp_path):
    script = tmp_path / "batches.py"
    script.write_text(BATCHES)
    options = {"env": {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}, "check": True, "timeout": 300}
    output = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, text=True, **options).stdout
    here, *others = output.splitlines()
    assert len(others) >= 2
    assert set(others) == {here}


FORKED = """
import os, signal, threading, time
import numpy as np
from numba.core.compiler_lock import global_compiler_lock
from lorsum import _kernels

compiling = threading.Event()
def compile_for_a_while():
    with global_compiler_lock:
        compiling.set()
        time.sleep(0.3)

threading.Thread(target=compile_for_a_while).start()
compiling.wait()
child = os.fork()
if not child:
    signal.alarm(60)  # the end of one that waits for ever
    print(*_kernels.transposed(np.eye(1)).ravel(), flush=True)
    os._exit(0)
print(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_fork_while_another_thread_compiles(tmp_path):
    code = "import warnings; warnings.simplefilter('ignore')" + FORKED  # Python 3.12 warns of any fork beside threads
    assert run(code, tmp_path / "cache") == [[1.0], [0.0]]


# --- no compilation ---

EVERY_FUNCTION = """
import numpy as np
import lorsum as ls

rng = np.random.default_rng(0)
W, G = (ls.LowRank(rng.normal(size=(9, r)), rng.normal(size=(7, r))) for r in (2, 3))
target = W - 0.1 * G
X = ls.lorsum(target)
results = [X, ls.lorsum(target, reg=0.1, method="coefficients"), ls.lorsum(target + G.to_dense(), accelerate="krylov")]
results += [W.balanced(), ls.truncated_svd(target, 2).to_lowrank()]
for rule in (ls.optim.OPLoRA(lr=0.1, momentum=0.9), ls.optim.ScaledOPLoRA(lr=0.1), ls.optim.SVDLoRA(lr=0.1)):
    stepped, state = W, rule.init(W, rng=0)
    for _ in range(3):
        stepped, state = rule.step(stepped, G, state)
    results.append(stepped)
for result in results:
    print(*result.to_dense().ravel())
print(*ls.gap(X, target))
"""


def test_without_compilation_results_are_the_same(tmp_path, capsys):
    exec(EVERY_FUNCTION, {})
    expected = [[float(word) for word in line.split()] for line in capsys.readouterr().out.splitlines()]
    given = run(EVERY_FUNCTION, tmp_path / "cache", NUMBA_DISABLE_JIT="1")
    assert len(given) == len(expected) == 9
    for numbers, those in zip(given, expected, strict=True):
        np.testing.assert_allclose(numbers, those, rtol=0, atol=1e-13 * np.max(np.abs(those)))
