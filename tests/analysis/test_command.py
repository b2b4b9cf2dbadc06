"""``python -m analysis``: every study and benchmark is listed, found by its name, and has options of its own."""

import importlib
import subprocess
import sys

import pytest

from analysis import __main__ as command
from analysis.benchmarks import STUDIES as BENCHMARKS
from analysis.studies import STUDIES


def test_the_list_has_every_name_and_question(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert command.main([]) is None
    printed = capsys.readouterr().out
    for study in STUDIES + BENCHMARKS:
        assert study.name in printed and study.question in printed and study.takes in printed


def test_listing_needs_no_framework():
    program = "import sys, analysis.__main__; sys.exit(bool({'torch', 'jax', 'matplotlib'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_a_study_has_its_options(study, capsys):
    with pytest.raises(SystemExit, match="0"):
        command.main([study.name, "--help"])
    printed = capsys.readouterr().out
    assert f"python -m analysis {study.name}" in printed
    assert "--records" in printed and "--workers" in printed
    assert "?" in importlib.import_module(study.module).__doc__  # the question stands in the module too


def test_a_study_is_run_with_its_options(tmp_path, monkeypatch):
    linear = importlib.import_module("analysis.studies.linear")
    monkeypatch.setattr(linear, "FULL_BATCH", linear.FULL_BATCH[-1:])
    monkeypatch.setattr(linear, "MINI_BATCH", [])
    monkeypatch.setattr(linear, "MOMENTUM_RANK", [])
    command.main(["linear", "--seeds", "2", "--epochs", "1", "--workers", "1", "--records", str(tmp_path)])
    assert len(list(tmp_path.glob("linear-full-batch-lora-adamw-seed*.json"))) == 2


def test_an_unknown_name_is_answered_with_the_known_ones(capsys):
    assert command.main(["lenet"]) == 2
    assert "'lenet' is none of the studies and benchmarks: convergence, linear" in capsys.readouterr().err
