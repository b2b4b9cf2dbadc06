"""Figure 1, the one of MNIST and the one of gaps, from made-up records."""

import math
from itertools import pairwise

import numpy as np
import pytest
from made_up_records import BEST, SMALL, SOURCE, linear_results, made_up, mnist_results
from matplotlib import rc_context

from analysis.experiments.sizes import Size
from analysis.experiments.style import RC, appearance
from paper_figures import figure1, figure1_table, gap, mnist_table
from paper_figures import mnist as mnist_figure
from paper_figures.curves import methods
from paper_figures.studies import stated

FIGURES = {"figure1": figure1, "mnist": mnist_figure, "gap": gap}


@pytest.fixture
def records():
    return made_up(SMALL)


def test_figure1_shows_and_tells_that_full_training_passes_the_best_loss(records):
    with rc_context(RC):
        drawing = figure1.make(records)
        drawing.figure.canvas.draw()
    full, mini, _ = drawing.figure.axes[:3]
    for axis in (full, mini):
        assert any("from epoch 2 on" in text.get_text() for text in axis.texts)
        assert axis.get_ylim()[0] > 0
    # the lowest that is drawn is what leaves at the bottom, not rounding
    assert full.get_ylim()[0] == pytest.approx(1e-11 * BEST)
    markers = [line for line in full.lines if line.get_marker() == "v"]
    assert sorted(line.get_xdata()[0] for line in markers) == [1, 2]  # SVDLoRA and full training


@pytest.mark.parametrize(
    ("excess", "epoch"),
    [
        ([9, 2, 1], None),
        ([9, -5, -5], 1),
        ([9, -5, 3, -5], 3),
        ([9, -5, 3], None),
        ([9, 1e-13, -1e-13], None),
        ([-5], 0),
    ],
)
def test_below_the_best_loss_for_good(excess, epoch):
    assert figure1_table.below_from(np.array(excess), 1e-11) == epoch


def test_figure1_survives_a_method_that_diverges(records):
    for record in records["linear"]:
        if record["config"]["method"] == "lora sgd":
            record["results"]["excess"] = [1e4, 1e200, math.inf, math.nan]
    with rc_context(RC):
        figure1.make(records).figure.canvas.draw()


def test_figure1_numbers(records):
    table = figure1_table.table(records["linear"])
    lora = next(row for row in table.rows if row["task"].text == "full batch" and row["method"].text == "LoRA SGD")
    assert lora["epoch 3"].values == pytest.approx({"median": 18.5, "low": 18, "high": 19})
    assert any("SVDLoRA's relative excess |excess| / best after one step is 1e-16" in s for s in table.sentences)
    assert {row["momentum rank"].text for row in table.rows if row["task"].text == "mini-batch"} == {
        "",
        "8",
        "16",
        "32",
    }


@pytest.mark.parametrize("ahead", [True, False])
def test_figure1_sentences_are_computed(records, ahead):
    for record in records["linear"]:
        if record["config"]["method"] == "oplora":
            record["results"] = linear_results(record["config"], final=1.0 if ahead else 1e3)
    sentences = figure1_table.table(records["linear"]).sentences
    verdict = next(s for s in sentences if s.startswith("Mini-batch, at the end: every"))
    assert ("except" not in verdict) == ahead
    assert ahead or "OPLoRA ×8 (1,000) is not below SVDLoRA (17.5)" in verdict


def test_the_order_of_records_does_not_matter(records):
    for figure in FIGURES.values():
        shuffled = {study: list(reversed(entries)) for study, entries in records.items()}
        with rc_context(RC):
            assert figure.make(records).table == figure.make(shuffled).table


def test_mnist_sentences_are_computed(records):
    def sentences(shift):
        """With OPLoRA ×1's accuracy moved by some points."""
        for record in records["mnist"]:
            if record["config"]["method"] == "oplora" and record["config"]["iters"] == 1:
                record["results"]["accuracy"] = list(
                    np.array(mnist_results(record["config"])["accuracy"]) + shift / 100
                )
        return " ".join(mnist_table.table(records["mnist"]).sentences)

    assert "are within half a point" in sentences(0.4)
    assert "difference of their averages is 0.40 ± 0.00 points" in sentences(0.4)
    assert "are not within half a point" in sentences(0.6)
    assert (
        "Not both of OPLoRA ×1 and SVDLoRA are above LoRA SGD (85.05%): OPLoRA ×1 falls 2.00 points short"
        in sentences(-2)
    )
    assert "full training apart, is OPLoRA ×1's: 86.05%" in sentences(1)
    assert "SVDLoRA 2." in sentences(0)


def test_mnist_table_has_the_papers_numbers(records):
    table = mnist_table.table(records["mnist"])
    row = next(row for row in table.rows if row["method"].text == "OPLoRA ×2")
    assert row["average over epochs"].values == pytest.approx({"mean": 85.05, "std": 0.1 / math.sqrt(2)})
    assert row["paper's average (LeNet5, 20 epochs)"].text == "98.55 ± 0.10"
    assert len(table.rows) == 12


def test_captions_say_what_was_run(records):
    with rc_context(RC):
        captions = {name: figure.make(records).caption for name, figure in FIGURES.items()}
    assert "2 seeds × 3 epochs, reduced from the paper's 5 seeds × 100 epochs" in captions["figure1"]
    for name in ("mnist", "gap"):
        assert SOURCE in captions[name]
        assert "2 seeds × 2 epochs, reduced from the paper's 3 seeds × 20 epochs" in captions[name]
    one = [{"config": {"study": "mnist", "seed": 0, "epochs": 1}}]
    assert stated(one).startswith("1 seed × 1 epoch,")
    whole = [{"config": {"study": "mnist", "seed": seed, "epochs": 20}} for seed in range(3)]
    assert stated(whole) == "3 seeds × 20 epochs, as in the paper"


def test_a_gap_where_nothing_is_left_to_miss_is_not_drawn(records):
    with rc_context(RC):
        drawing = gap.make(records)
    svd = [c for c in drawing.curves if c.panel == "Linear, full batch" and c.method.config["method"] == "svdlora"]
    assert [list(curve.x) for curve in svd] == [[1], [1]]  # it is there after one step


def test_one_seed_and_one_epoch_are_enough():
    records = made_up({study: Size(seeds=1, epochs=1) for study in SMALL})
    with rc_context(RC):
        for figure in FIGURES.values():
            figure.make(records).figure.canvas.draw()


def test_nothing_is_drawn_over_the_figures_edge(records):
    with rc_context(RC):
        for figure in FIGURES.values():
            sheet = figure.make(records).figure
            sheet.canvas.draw()
            inside = sheet.bbox.padded(1)
            boxes = [text.get_window_extent() for text in sheet.texts] + [
                key.get_window_extent() for key in sheet.legends
            ]
            boxes += [axis.get_tightbbox() for axis in sheet.axes]
            assert all(inside.contains(*corner) for box in boxes for corner in (box.min, box.max))
            keys = [key.get_window_extent() for key in sheet.legends]
            assert all(left.x1 < right.x0 for left, right in pairwise(keys))
            assert max(text.get_window_extent().y1 for text in sheet.texts) < min(key.y0 for key in keys)


def test_a_method_has_its_own_look_and_k_its_shade():
    configs = {
        method.name: method.config
        for method in methods(made_up(SMALL)["linear"])
        if "momentum_rank" not in method.config
    }
    looks = {name: appearance(config) for name, config in configs.items()}
    assert len({(str(look["color"]), str(look["linestyle"])) for look in looks.values()}) == len(looks)
    for family, Ks in (("OPLoRA", (1, 2, 8, 32, 128)), ("projected OPLoRA", (1, 2, 8))):
        brightness = [sum(looks[f"{family} ×{K}"]["color"][:3]) for K in Ks]
        assert brightness == sorted(brightness, reverse=True)
