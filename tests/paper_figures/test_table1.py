"""Table 1's MNIST column, from made-up records: beside the paper's numbers, and judged by them."""

from itertools import pairwise

import numpy as np
import pytest
from matplotlib import rc_context

from analysis.experiments.style import RC
from analysis.studies.lenet5 import study
from paper_figures import table1, table1_table
from paper_figures.curves import methods
from paper_figures.published import published

SOURCE = "made-up digits, 7 + 3 images"


def made_up(*, seeds=3, epochs=20, shift=0.0):
    """Every method as the paper has it, but for OPLoRA ×1, which is some points off."""

    def results(config):
        papers = published(config, "MNIST", "average test accuracy (%)")
        mean, std = papers or (98.0, 0.1)
        moved = shift * (config.get("iters") == 1 and config["method"] == "oplora")
        average = (mean + std * (config["seed"] - 1) + moved) / 100
        return {"loss": [0.1] * epochs, "accuracy": [average] * epochs, "seconds": [2.0] * epochs}

    configs = study.configurations(seeds=seeds, epochs=epochs, source=SOURCE)
    return [{"config": config, "results": results(config)} for config in configs]


def sentences(**made):
    return " ".join(table1_table.table(made_up(**made)).sentences)


def test_the_table_has_the_papers_numbers_beside_ours():
    rows = {row["method"].text: row for row in table1_table.table(made_up()).rows}
    assert len(rows) == 13 + 3
    assert rows["OPLoRA ×2"]["average over epochs"].text == rows["OPLoRA ×2"]["paper's average"].text == "98.55 ± 0.10"
    assert rows["SVDLoRA"]["difference"].values[""] == pytest.approx(0, abs=1e-9)
    assert "paper's average" not in rows["full AdamW"]


def test_differences_beyond_two_standard_deviations_are_named():
    assert "15 of 15 rows are within" in sentences()
    limit = 2 * np.hypot(0.106, 0.106)
    assert "15 of 15 rows are within" in sentences(shift=0.98 * limit)
    beyond = sentences(shift=-1.02 * limit)
    assert "OPLoRA ×1 differs from the paper" in beyond and "14 of 15 rows are within" in beyond
    row = next(r for r in table1_table.table(made_up(shift=-0.3)).rows if r["method"].text == "OPLoRA ×1")
    assert (row["difference"].text, row["in combined std"].text) == ("-0.30", "-2.0")


def test_a_reduced_study_says_so_and_judges_nothing():
    reduced = sentences(seeds=1, epochs=1, shift=5.0)
    assert "1 seed × 1 epoch, reduced from the paper's 3 seeds × 20 epochs" in reduced
    assert "differs" not in reduced and "within" not in reduced


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_figure_is_drawn(seeds):
    records = made_up(seeds=seeds, epochs=2)
    with rc_context(RC):
        drawing = table1.make({"lenet5": records})
        drawing.figure.canvas.draw()
    keys = [key.get_window_extent() for key in drawing.figure.legends]
    assert all(left.x1 < right.x0 for left, right in pairwise(keys)) and keys[-1].x1 < drawing.figure.bbox.x1
    assert SOURCE in drawing.caption
    assert len(drawing.curves) == 13 and len(methods(records)) == 13 + 3
