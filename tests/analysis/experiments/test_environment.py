import subprocess
import sys
from pathlib import Path

import analysis
from analysis.experiments.environment import environment
from analysis.experiments.records import read_record, write_record


def test_environment_can_be_recorded_and_says_where(tmp_path):
    where = environment()
    write_record(tmp_path / "record.json", where)
    assert read_record(tmp_path / "record.json") == where
    assert {"time", "python", "platform", "cpu", "cpu_count", "thread_pools", "versions", "git"} <= where.keys()
    assert {"lorsum", "numpy", "scipy", "numba"} <= where["versions"].keys()
    assert where["git"] is None or len(where["git"]["commit"]) == 40


def test_environment_imports_nothing_heavy():
    code = (
        "import sys; from analysis.experiments import records; records.environment();"
        "print(*{'numba', 'torch', 'jax', 'matplotlib', 'scipy'} & set(sys.modules))"
    )
    root = Path(analysis.__file__).parents[1]
    ended = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == ""
