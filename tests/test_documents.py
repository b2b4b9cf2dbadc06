"""What the documents point to is there: files, links and commands."""

import importlib.util
import re
from pathlib import Path

import pytest

from analysis import benchmarks, studies

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
STUDIES = {study.name for study in (*studies.STUDIES, *benchmarks.STUDIES)}


@pytest.fixture(params=DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def document(request):
    return request.param


def test_links(document):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text(encoding="utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_files(document):
    folders = "lorsum|analysis|tests|docs|paper_figures|notebooks|\\.ci"
    named = re.findall(rf"`((?:{folders})/[\w./-]*)`", document.read_text(encoding="utf-8"))
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_commands(document):
    commands = re.findall(r"python3? -m\s([\w.]+)(?:\s([a-z][a-z-]+))?", document.read_text(encoding="utf-8"))
    assert [module for module, _ in commands if importlib.util.find_spec(module) is None] == []
    assert {study for module, study in commands if module == "analysis" and study} <= STUDIES
