import subprocess
import sys
from pathlib import Path

import lorsum

CODE = """
import sys, time
start = time.process_time()  # other programs do not count
import lorsum
print(time.process_time() - start)
print(*sorted({"torch", "jax", "matplotlib", "numba", "optax", "analysis"} & set(sys.modules)))
"""


def test_import_is_quick_and_loads_nothing_heavy():
    root = Path(lorsum.__file__).parents[1]
    ended = [
        subprocess.run([sys.executable, "-c", CODE], cwd=root, capture_output=True, text=True, check=True).stdout
        for _ in range(3)
    ]
    seconds, loaded = zip(*(output.split("\n")[:2] for output in ended), strict=True)
    assert set(loaded) == {""}
    assert min(map(float, seconds)) < 0.5


def test_all_public_names_exist():
    for module in (lorsum, lorsum.optim, lorsum.theory):
        assert sorted(set(module.__all__)) == sorted(module.__all__)
        assert all(hasattr(module, name) for name in module.__all__)
