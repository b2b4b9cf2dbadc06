"""What stands in more than one file of the project says the same in each."""

import re
import tomllib
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement

import lorsum

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
DEPENDENCIES = [
    *PYPROJECT["build-system"]["requires"],
    *PROJECT["dependencies"],
    *chain.from_iterable(PROJECT["optional-dependencies"].values()),
]


def lines(path):
    """The lines of a file without comments and empty lines."""
    text = (ROOT / path).read_text(encoding="utf-8")
    return [line for line in (line.partition("#")[0].strip() for line in text.splitlines()) if line]


def requirements(texts):
    """Version bounds by package; the extras of this project are left out."""
    return {r.name.lower(): r.specifier for r in map(Requirement, texts) if r.name != PROJECT["name"]}


def test_the_version_stands_in_one_place_and_is_what_is_cited():
    assert PROJECT["dynamic"] == ["version"]
    assert PYPROJECT["tool"]["hatch"]["version"]["path"] == "lorsum/__init__.py"
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert cited[1] == lorsum.__version__


def test_every_dependency_has_a_lower_bound_alone():
    for bounds in requirements(DEPENDENCIES).values():
        assert [bound.operator for bound in bounds] == [">="]


def test_the_oldest_python_is_the_same_for_all_tools():
    major, minor = PROJECT["requires-python"].removeprefix(">=").split(".")
    tools = PYPROJECT["tool"]
    assert tools["mypy"]["python_version"] == f"{major}.{minor}"
    assert tools["ruff"]["target-version"] == f"py{major}{minor}"
    assert f'oldest.txt" python{major}.{minor}\n' in (ROOT / ".ci/run").read_text(encoding="utf-8")


def test_the_oldest_versions_are_the_lower_bounds():
    bounds = requirements(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test-core"])
    oldest = requirements(lines(".ci/oldest.txt"))
    assert {name: str(bound).replace(">=", "==") for name, bound in bounds.items()} == {
        name: str(bound) for name, bound in oldest.items()
    }


def test_the_versions_of_the_checks_are_within_the_bounds():
    bounds = requirements(DEPENDENCIES)
    pinned = requirements(lines(".ci/constraints.txt"))
    assert bounds.keys() <= pinned.keys()
    for name, bound in bounds.items():
        assert bound.contains(str(pinned[name]).removeprefix("=="))
