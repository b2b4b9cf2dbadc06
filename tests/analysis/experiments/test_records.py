import importlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import analysis
from analysis.experiments.records import read_record, read_records, record_path, run_study, write_record

# A module of its own, since worker processes have to import what they run, and a script, to be killed.
STUDY = """
import os
import signal
import time
from pathlib import Path

import numpy as np

from analysis.experiments.records import run_study

HERE = Path(__file__).parent
CONFIGS = [{"study": "slow", "seed": seed} for seed in range(8)]


class TwoArguments(Exception):  # pickles, but cannot be unpickled
    def __init__(self, one, two):
        super().__init__("three is no good")


def slow(config):
    with open(HERE / "log", "a") as log:
        log.write(f"{config['seed']}\\n")
    time.sleep(0.5)
    return {"square": config["seed"] ** 2}


def singular_values(config):
    matrix = np.random.default_rng(config["seed"]).standard_normal((300, 200))
    return {"s": np.linalg.svd(matrix @ matrix.T, compute_uv=False)}


def fails_at_three(config):
    if config["seed"] == 3:
        raise TwoArguments(1, 2)
    return {"square": config["seed"] ** 2}


def dies(config):
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run_study(slow, CONFIGS, HERE / "records", workers=2)
"""
ROOT = Path(analysis.__file__).parents[1]
posix_only = pytest.mark.skipif(os.name != "posix", reason="POSIX signals")


@pytest.fixture
def study(tmp_path, monkeypatch):
    (tmp_path / "study_to_run.py").write_text(STUDY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "study_to_run", raising=False)
    return importlib.import_module("study_to_run")


def square(config):
    return {"square": config["seed"] ** 2}


def seeds(count, **config):
    return [{"study": "squares", **config, "seed": seed} for seed in range(count)]


def squares(records):
    return [record["results"]["square"] for record in records]


# --- one record ---


def test_round_trip_converts_numpy_and_keeps_non_finite_floats(tmp_path):
    record = {
        "matrix": np.array([[1.5, np.inf], [-np.inf, 0.1]]),
        "scalars": (np.int64(3), np.float32(0.5), np.bool_(True), np.float64("nan")),
        "nested": {"λ": None, "word": "infinite", "empty": []},
    }
    write_record(tmp_path / "new" / "record.json", record)
    read = read_record(tmp_path / "new" / "record.json")
    assert read["matrix"] == [[1.5, math.inf], [-math.inf, 0.1]]
    assert read["scalars"][:3] == [3, 0.5, True] and math.isnan(read["scalars"][3])
    assert read["nested"] == record["nested"]


def test_the_file_is_strict_json(tmp_path):
    write_record(tmp_path / "record.json", {"loss": [math.nan, math.inf]})

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    assert json.loads((tmp_path / "record.json").read_text(), parse_constant=refuse) == {"loss": ["nan", "inf"]}


words = st.text(max_size=5).filter(lambda text: text not in ("nan", "inf", "-inf"))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(words, values, max_size=4))
def test_round_trip_of_any_json_value(record):
    with TemporaryDirectory() as folder:
        write_record(Path(folder, "record.json"), record)
        assert repr(read_record(Path(folder, "record.json"))) == repr(record)  # repr, as nan is not nan


@pytest.mark.parametrize(
    ("entry", "error", "message"),
    [
        ({1, 2}, TypeError, r"`record\['results'\]\['x'\]` was a set"),
        (1j, TypeError, "was a complex"),
        ({8: 0.5}, TypeError, "has the key 8; keys should be strings"),
        ("nan", ValueError, "the string 'nan', which means the float"),
    ],
)
def test_what_a_record_cannot_hold_is_refused_and_leaves_nothing(tmp_path, entry, error, message):
    with pytest.raises(error, match=message):
        write_record(tmp_path / "record.json", {"results": {"x": entry}})
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_record_and_no_temporary_file(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    write_record(path, {"version": 1})

    def full(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_record(path, {"version": 2})
    assert read_record(path) == {"version": 1}
    assert list(tmp_path.iterdir()) == [path]


# --- names ---


def test_equal_configurations_have_one_path_and_others_have_their_own():
    path = record_path("folder", {"study": "linear", "lr": 1.0, "seed": 0})
    assert path == record_path(Path("folder"), {"seed": np.int64(0), "lr": np.float64(1), "study": "linear"})
    assert path.name.startswith("linear-seed0-") and path.suffix == ".json"
    different = [{"lr": 0.1}, {"lr": np.inf}, {"lr": None}, {"lr": True}, {"lr": [1]}, {"lr": "1"}, {}]
    assert len({record_path("folder", {"seed": 0, **entries}) for entries in different}) == len(different)


def test_the_name_is_a_plain_file_name_whatever_the_configuration_says():
    path = record_path("folder", {"study": "../Linear task: λ", "method": "x" * 300, "rank": [1, 2]})
    assert path.parent == Path("folder") and path.name.startswith("linear-task-") and len(path.name) < 100


# --- reading a folder ---


def test_read_records_filters_by_configuration(tmp_path):
    run_study(square, seeds(3, method="a") + seeds(3, method="b"), tmp_path, workers=1, progress=False)
    assert len(read_records(tmp_path)) == 6
    assert [record["config"]["method"] for record in read_records(tmp_path, seed=np.int64(1))] == ["a", "b"]
    assert squares(read_records(tmp_path, method="b", seed=2)) == [4]
    assert read_records(tmp_path, rank=8) == []


def test_read_records_of_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="run its study first"):
        read_records(tmp_path / "missing")


@pytest.mark.parametrize("damage", ["", '{"config": {"seed": 0}, "resu', "[1, 2]", '{"results": {}}', "\0\xff"])
def test_a_damaged_record_is_named_with_what_to_do(tmp_path, damage):
    run_study(square, seeds(2), tmp_path, workers=1, progress=False)
    path = record_path(tmp_path, seeds(1)[0])
    path.write_text(damage, encoding="latin-1")
    for read in (lambda: read_records(tmp_path), lambda: run_study(square, seeds(2), tmp_path, progress=False)):
        with pytest.raises(ValueError, match=r"not a whole record .* delete it and run its study again") as error:
            read()
        assert str(path) in str(error.value)
    path.unlink()
    assert squares(run_study(square, seeds(2), tmp_path, workers=1, progress=False)) == [0, 1]


# --- a study ---


def test_a_record_tells_configuration_results_environment_and_time(tmp_path):
    config = {"study": "squares", "seed": 5, "reg": 1e-3, "sizes": (2, 3)}
    (record,) = run_study(square, [config], tmp_path, workers=1, progress=False)
    assert record["config"] == {**config, "sizes": [2, 3]}
    assert record["results"] == {"square": 25}
    assert record["seconds"] >= 0
    assert record["environment"]["versions"]["numpy"] == np.__version__
    assert record == read_record(record_path(tmp_path, config))


def test_finished_runs_are_not_repeated_and_equal_configurations_run_once(tmp_path):
    ran = []

    def run(config):
        ran.append(config.pop("seed"))  # spoils its own copy only
        return {"square": ran[-1] ** 2}

    configs = seeds(2)
    assert squares(run_study(run, configs + configs, tmp_path, workers=1, progress=False)) == [0, 1, 0, 1]
    assert squares(run_study(run, seeds(4), tmp_path, workers=1, progress=False)) == [0, 1, 4, 9]
    assert ran == [0, 1, 2, 3]
    assert configs == seeds(2)


def test_no_configurations(tmp_path):
    assert run_study(square, [], tmp_path, progress=False) == []


def test_results_do_not_depend_on_the_order(tmp_path):
    configs = seeds(6)
    shuffled = random.Random(0).sample(configs, len(configs))
    run_study(square, shuffled, tmp_path, workers=1, progress=False)
    assert squares(run_study(square, configs, tmp_path, workers=1, progress=False)) == [0, 1, 4, 9, 16, 25]


def test_a_record_of_another_configuration_is_an_error_before_anything_runs(tmp_path):
    first, second = seeds(2)
    run_study(square, [first], tmp_path, workers=1, progress=False)
    record_path(tmp_path, first).rename(record_path(tmp_path, second))
    with pytest.raises(ValueError, match="holds another configuration"):
        run_study(square, [first, second], tmp_path, workers=1, progress=False)
    assert not record_path(tmp_path, first).exists()


def test_parallel_equals_serial_to_the_last_bit(tmp_path, study):
    serial = run_study(study.singular_values, seeds(4), tmp_path / "serial", workers=1, progress=False)
    parallel = run_study(study.singular_values, seeds(4), tmp_path / "parallel", workers=2, progress=False)
    assert [record["results"] for record in serial] == [record["results"] for record in parallel]
    for record in serial + parallel:
        assert {pool["threads"] for pool in record["environment"]["thread_pools"]} == {1}


@pytest.mark.parametrize("workers", [1, 2])
def test_an_exception_is_reported_with_its_configuration_and_the_others_are_kept(tmp_path, study, workers, capsys):
    folder = tmp_path / "records"
    with pytest.raises(RuntimeError, match="1 of 6 runs failed") as error:
        run_study(study.fails_at_three, seeds(6), folder, workers=workers, progress=False)
    assert "{'study': 'squares', 'seed': 3}: study_to_run.TwoArguments: three is no good" in str(error.value)
    assert squares(read_records(folder)) and len(read_records(folder)) == 5
    assert "failed: squares-seed3-" in capsys.readouterr().err


def test_results_that_are_no_dict_are_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="`run` returned a list"):
        run_study(lambda config: [1], seeds(1), tmp_path, progress=False)


def test_a_function_that_workers_cannot_import_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="or pass `workers=1`"):
        run_study(lambda config: {}, seeds(2), tmp_path, workers=2, progress=False)


def test_no_workers_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="`workers` was 0"):
        run_study(square, seeds(2), tmp_path, workers=0)


def test_a_run_in_this_process_has_one_numba_thread_and_gives_the_others_back(tmp_path):
    numba = pytest.importorskip("numba")
    before = numba.get_num_threads()
    configs = seeds(1)
    (record,) = run_study(lambda config: {"threads": numba.get_num_threads()}, configs, tmp_path, progress=False)
    assert record["results"] == {"threads": 1}
    assert numba.get_num_threads() == before


def test_the_thread_variables_are_restored(tmp_path, study, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    run_study(study.fails_at_three, seeds(2), tmp_path / "records", workers=2, progress=False)
    assert os.environ["OMP_NUM_THREADS"] == "2" and "MKL_NUM_THREADS" not in os.environ


# --- death ---


def start(study):
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    with open(study.HERE / "errors", "w") as errors:
        return subprocess.Popen([sys.executable, study.__file__], env=environ, stderr=errors, start_new_session=True)


def started(study):
    log = study.HERE / "log"
    return log.read_text().split() if log.exists() else []


def recorded(study):
    return {path.name for path in (study.HERE / "records").glob("*.json")}


def wait_for_records(study, process, count):
    deadline = time.monotonic() + 60
    while len(recorded(study)) < count:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


@posix_only
def test_a_killed_study_leaves_no_workers_and_resumes_without_repeating(study):
    process = start(study)
    wait_for_records(study, process, 3)
    process.kill()
    process.wait()
    time.sleep(0.2)
    before, finished = started(study), recorded(study)
    time.sleep(0.8)  # a worker that lived on would finish its run of 0.5 s and start another
    assert (started(study), recorded(study)) == (before, finished)
    assert 3 <= len(finished) < 8

    resumed = start(study)
    assert resumed.wait(timeout=60) == 0, (study.HERE / "errors").read_text()
    runs = started(study)
    for config in study.CONFIGS:
        if record_path("", config).name in finished:
            assert runs.count(str(config["seed"])) == 1
    assert len(runs) <= 8 + 2  # two workers had at most two runs in progress
    assert sorted(squares(read_records(study.HERE / "records"))) == [seed**2 for seed in range(8)]


@posix_only
def test_an_interrupt_stops_the_study_quickly_and_cleanly(study):
    process = start(study)
    wait_for_records(study, process, 1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    assert process.wait(timeout=5) != 0
    errors = (study.HERE / "errors").read_text()
    assert errors.rstrip().endswith("KeyboardInterrupt") and errors.count("Traceback") == 1
    before = started(study)
    time.sleep(0.8)
    assert started(study) == before and len(before) < 8
    assert all(record["results"] for record in read_records(study.HERE / "records"))


@posix_only
def test_a_worker_that_dies_is_reported(tmp_path, study):
    with pytest.raises(RuntimeError, match=r"a worker process died.*fewer `workers`"):
        run_study(study.dies, seeds(2), tmp_path / "records", workers=2, progress=False)


@posix_only
def test_temporary_files_of_dead_processes_are_swept(tmp_path):
    written = {}

    def catch(source, target):
        written["name"] = Path(source).name
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", catch)
        write_record(tmp_path / "record.json", {})
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    living = tmp_path / written["name"]
    dead = tmp_path / written["name"].replace(f".{os.getpid()}.", f".{ended.pid}.")
    abroad, old = tmp_path / ".record.json.elsewhere.1.tmp", tmp_path / ".record.json.elsewhere.2.tmp"
    for path in (living, dead, abroad, old):
        path.write_text('{"half": ')
    os.utime(old, (0, 0))
    run_study(square, seeds(1), tmp_path, workers=1, progress=False)
    assert living.exists() and abroad.exists()
    assert not dead.exists() and not old.exists()
