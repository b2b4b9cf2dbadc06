import json
import re
from pathlib import Path

import jupytext
import pytest

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NO_TWINS = {"conftest", "refresh"}


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


def test_every_notebook_has_a_twin():
    assert NOTEBOOKS
    assert {path.stem for path in NOTEBOOKS} == {path.stem for path in FOLDER.glob("*.py")} - NO_TWINS


def test_twins_hold_the_same_cells(path):
    notebook, twin = jupytext.read(path), jupytext.read(path.with_suffix(".py"))
    cells, twins = ([(cell.cell_type, cell.source) for cell in one.cells] for one in (notebook, twin))
    assert cells == twins, f"run `python notebooks/refresh.py {path.stem}`"


def test_outputs_are_those_of_one_clean_run(path):
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    for output in (output for cell in cells for output in cell["outputs"]):
        assert output["output_type"] != "error" and output.get("name") != "stderr"
    assert sum("image/png" in output.get("data", {}) for cell in cells for output in cell["outputs"]) >= 2


def test_nothing_in_a_notebook_is_of_one_machine_and_it_is_small(path):
    text = path.read_text(encoding="utf-8")
    notebook = json.loads(text)
    assert notebook["metadata"].keys() == {"jupytext", "kernelspec", "language_info"}
    assert notebook["metadata"]["language_info"] == {"name": "python"}
    assert not any(cell["metadata"] for cell in notebook["cells"])
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            shown = {**output, "data": {kind: x for kind, x in output.get("data", {}).items() if kind != "image/png"}}
            assert not re.search(r"0x[0-9a-f]{6}|/home/|/Users/|/tmp/|site-packages", json.dumps(shown))
    assert len(text) < 500_000
