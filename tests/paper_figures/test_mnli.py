"""MNLI's figure, from made-up records."""

import json
from itertools import pairwise

import numpy as np
import pytest
from matplotlib import rc_context

from analysis.experiments.methods import configuration
from analysis.experiments.style import RC
from analysis.studies.mnli import study as mnli
from paper_figures import mnli as figure


def made_up(seeds=1, **changes):
    """Records as the study leaves them, by made-up results."""
    protocol = mnli.REDUCED._replace(seeds=seeds, **changes)
    return [
        {"config": config, "results": results(i, config), "environment": {}}
        for i, config in enumerate(mnli.configurations(protocol))
    ]


def results(i, config):
    evaluations = np.arange(config["every"], config["steps"] + 1, config["every"])
    return {
        "loss": list(np.linspace(1.1, 1 - 0.01 * i, config["steps"])),
        "seconds": [0.5] * config["steps"],
        "update_seconds": [0.05 * (i + 1)] * config["steps"],
        "dev_step": list(evaluations),
        "dev_loss": list(np.linspace(1.1, 1 - 0.01 * i, len(evaluations))),
        "dev_accuracy": list(np.linspace(0.33, 0.5 + 0.01 * i, len(evaluations))),
        "last_loss": 1 - 0.01 * i,
        "last_accuracy": 0.5 + 0.01 * i,
        "data": "MNLI, some pairs",
        "parameters": 22_714_371,
        "trained": 222_723,
    }


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_figure_has_three_panels_and_nothing_over_its_edge(seeds):
    with rc_context(RC):
        drawing = figure.make({"mnli": made_up(seeds)})
        sheet = drawing.figure
        sheet.canvas.draw()
        inside = sheet.bbox.padded(1)
        boxes = [text.get_window_extent() for text in sheet.texts] + [key.get_window_extent() for key in sheet.legends]
        boxes += [axis.get_tightbbox() for axis in sheet.axes]
        assert all(inside.contains(*corner) for box in boxes for corner in (box.min, box.max))
        keys = [key.get_window_extent() for key in sheet.legends]
        assert all(left.x1 < right.x0 for left, right in pairwise(keys))
    assert len({curve.panel for curve in drawing.curves}) == 3
    assert all(len(curve.x) == len(curve.y.median) for curve in drawing.curves)


def test_the_numbers_and_sentences_are_computed():
    table = figure.make({"mnli": made_up()}).table
    row = {row["method"].text: row for row in table.rows}["OPLoRA ×2"]
    assert row["accuracy, %"].values["mean"] == pytest.approx(53)
    assert row["of it the optimizer's, s"].values[""] == pytest.approx(0.2)
    text = " ".join(table.sentences)
    assert "SVDLoRA 54.0%, OPLoRA ×2 53.0%, projected OPLoRA ×2 52.0%" in text
    assert "OPLoRA ×2 ends at a development loss of 0.9700 and SVDLoRA at 0.9600" in text


def test_the_caption_says_what_is_reduced():
    assert "reduced from the paper's roberta-base, 36,813 steps" in figure.make({"mnli": made_up()}).caption
    paper = mnli.PAPER._asdict()
    del paper["seeds"]
    caption = figure.make({"mnli": made_up(**paper | {"steps": mnli.PAPER.steps})}).caption
    assert "as in the paper" in caption and "reduced" not in caption


def test_learning_rates_beside_the_papers(monkeypatch):
    changed = configuration("lora adamw", lr=1e-3)
    monkeypatch.setattr(mnli, "METHODS", [changed, *mnli.METHODS[1:]])
    table = figure.make({"mnli": made_up()}).table
    assert any("LoRA AdamW (η = 0.001 for 0.0002)" in sentence for sentence in table.sentences)
    assert json.loads(json.dumps(table.rows[0]["paper's η (RoBERTa)"].values)) == {"": 2e-4}
