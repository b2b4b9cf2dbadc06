"""The README's promises that can be run."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_example_runs_and_says_what_its_comments_say(capsys):
    (example,) = blocks("python")
    names = {}
    exec(example, names)
    assert names["X"].rank == names["W"].rank == 8
    assert names["ls"].gap(names["X"], names["target"]).excess < 1e-9
    assert capsys.readouterr().out.startswith("Gap(error=")


def test_there_are_two_commands_one_for_the_main_job_and_one_for_the_tests():
    main_job, tests = blocks("bash")
    assert main_job.strip().endswith("-m paper_figures")
    assert tests.strip().endswith("-m pytest")


@pytest.mark.parametrize(
    "target", sorted(set(re.findall(r"\]\((?!https?:)([^)]+)\)|`((?:lorsum|analysis)/[^`]*)`", README)))
)
def test_what_it_points_to_is_there(target):
    assert (ROOT / next(filter(None, target))).exists()
