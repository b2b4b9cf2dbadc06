"""The figures and tables: drawn from made-up records, and the shape of Figure 1 from real ones."""

import csv
import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from analysis.records import record_path, run_study, write_record
from matplotlib import rc_context
from paper_figures.style import RC, appearance
from paper_figures.tables import Cell, Table, interval, number, short, words

from analysis import linear, mnist
from paper_figures import __main__ as command
from paper_figures import figure1, figure1_table, files, gap, mnist_table, protocol
from paper_figures import mnist as mnist_figure
from paper_figures.curves import median_interval, methods

SOURCE = "made-up digits, 7 + 3 images"
BEST = 1e5
FIGURES = {"figure1": figure1, "mnist": mnist_figure, "gap": gap}


def linear_results(config, final=None):
    """The excess falls to a number that the method and the seed fix; full training goes below the best loss."""
    epochs = config["epochs"]
    final = final or 10.0 + len(str(config["method"])) + config["seed"]
    excess = np.geomspace(1e4, final, epochs + 1)
    if config["method"] == "full":
        excess[2:] = -BEST
    if config["method"] == "svdlora" and config["task"] == "full batch":
        excess[1:] = 1e-11
    measured = [] if config["method"] == "full" else list(range(1, epochs + 1))
    return {
        "excess": list(excess),
        "best": BEST,
        "gap_epoch": measured,
        "step_excess": [0.1 / epoch for epoch in measured],
        "step_missed": [0.5 for _ in measured],
    }


def mnist_results(config):
    epochs = config["epochs"]
    measured = [] if config["method"] == "full" else list(range(10, 10 + 3 * epochs))
    return {
        "loss": list(np.geomspace(1, 0.1, epochs)),
        "accuracy": list(np.linspace(0.8, 0.9, epochs) + 0.001 * config["seed"]),
        "seconds": [2.0] * epochs if config["method"] == "svdlora" else [1.0] * epochs,
        "gap_step": measured,
        "step_excess": [0.1] * len(measured),
        "step_missed": [0.5] * len(measured),
    }


def made_up(size):
    """Records of both studies as `run_study` would return them."""
    asked = {
        "linear": (linear.configurations(**size["linear"]._asdict()), linear_results),
        "mnist": (mnist.configurations(**size["mnist"]._asdict(), source=SOURCE), mnist_results),
    }
    return {
        study: [{"config": config, "results": results(config)} for config in configs]
        for study, (configs, results) in asked.items()
    }


SMALL = {"linear": protocol.Size(seeds=2, epochs=3), "mnist": protocol.Size(seeds=2, epochs=2)}


@pytest.fixture
def records():
    return made_up(SMALL)


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """A folder with a record of every run that the command asks for, where running anything is an error."""
    monkeypatch.setattr(mnist.datasets, "mnist", lambda: SimpleNamespace(source=SOURCE))
    monkeypatch.setattr(command, "REDUCED", SMALL)
    monkeypatch.setattr(command, "PAPER", SMALL | {"mnist": protocol.Size(seeds=2, epochs=4)})
    for study in (linear, mnist):
        monkeypatch.setattr(study, "run", None)
    for size in (command.REDUCED, command.PAPER):
        for study, entries in made_up(size).items():
            for record in entries:
                whole = record | {"environment": {}, "seconds": 1.0}
                write_record(record_path(tmp_path / "records" / study, record["config"]), whole)
    return tmp_path


def draw(folder, *arguments):
    command.main([*arguments, "--records", str(folder / "records"), "--output", str(folder / "figures")])
    return sorted(path.name for path in (folder / "figures").iterdir())


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# The command


def test_everything_is_drawn_from_records_alone(recorded, capsys):
    endings = (".csv", ".md", ".pdf", ".png", "_curves.csv")
    assert draw(recorded) == sorted(name + ending for name in FIGURES for ending in endings)
    figures = recorded / "figures"
    assert (figures / "figure1.png").read_bytes().startswith(b"\x89PNG")
    assert (figures / "gap.pdf").read_bytes().startswith(b"%PDF")

    printed = capsys.readouterr().out
    assert SOURCE in printed
    assert str(figures / "mnist.png") in printed
    for sentence in mnist_table.table(made_up(SMALL)["mnist"]).sentences:
        assert " ".join(sentence.split()) in " ".join(printed.split())


def test_only_the_figures_asked_for(recorded):
    drawn = draw(recorded, "--only", "mnist", "--only", "gap")
    assert {name.split(".")[0].removesuffix("_curves") for name in drawn} == {"mnist", "gap"}


def test_full_draws_the_longer_runs(recorded):
    draw(recorded, "--only", "mnist", "--full")
    epochs = {float(row["x"]) for row in read_csv(recorded / "figures" / "mnist_curves.csv")}
    assert epochs == {1, 2, 3, 4}


def test_the_same_records_give_the_same_bytes(recorded):
    draw(recorded, "--only", "gap")
    first = {path.name: path.read_bytes() for path in (recorded / "figures").iterdir()}
    draw(recorded, "--only", "gap")
    assert {path.name: path.read_bytes() for path in (recorded / "figures").iterdir()} == first


def test_list_names_the_figures(capsys):
    command.main(["--list"])
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()] == list(command.FIGURES)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["--only", "figure9"], list(FIGURES)), (["--workers", "0"], ["1 or more"]), (["--workers", "many"], ["'many'"])],
)
def test_bad_arguments_are_explained(arguments, expected, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(arguments)
    message = capsys.readouterr().err
    assert all(text in message for text in expected)


def test_an_interrupt_says_how_to_go_on(recorded, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "records_of", interrupted)
    with pytest.raises(SystemExit, match="goes on"):
        draw(recorded)


@pytest.mark.slow
def test_what_has_no_record_is_run_once(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "REDUCED", {"linear": protocol.Size(seeds=1, epochs=2)})
    assert len(draw(tmp_path, "--only", "figure1", "--workers", "1")) == 5
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "records" / "linear").iterdir()}
    assert len(written) == len(linear.configurations(seeds=1, epochs=2))

    monkeypatch.setattr(linear, "run", None)
    draw(tmp_path, "--only", "figure1", "--workers", "1")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "records" / "linear").iterdir()} == written


# The figures


def test_figure1_shows_and_tells_that_full_training_passes_the_best_loss(records):
    with rc_context(RC):
        product = figure1.make(records)
        product.figure.canvas.draw()
    full, mini, _ = product.figure.axes[:3]
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
    assert protocol.stated(one).startswith("1 seed × 1 epoch,")
    whole = [{"config": {"study": "mnist", "seed": seed, "epochs": 20}} for seed in range(3)]
    assert protocol.stated(whole) == "3 seeds × 20 epochs, as in the paper"


def test_a_gap_where_nothing_is_left_to_miss_is_not_drawn(records):
    with rc_context(RC):
        product = gap.make(records)
    svd = [c for c in product.curves if c.panel == "Linear, full batch" and c.method.config["method"] == "svdlora"]
    assert [list(curve.x) for curve in svd] == [[1], [1]]  # it is there after one step


def test_one_seed_and_one_epoch_are_enough():
    records = made_up({study: protocol.Size(seeds=1, epochs=1) for study in SMALL})
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


# Numbers and files


@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_the_interval_of_few_seeds_is_their_range(seeds):
    values = np.random.default_rng(seeds).normal(size=(seeds, 4))
    median, low, high = median_interval(values)
    np.testing.assert_array_equal([median, low, high], [np.median(values, 0), values.min(0), values.max(0)])


def test_the_interval_of_many_seeds_is_narrower_and_reproducible():
    values = np.random.default_rng(0).normal(size=50)
    median, low, high = median_interval(values)
    assert values.min() < low < median < high < values.max()
    assert median_interval(values) == (median, low, high)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (4658.3, "4,660"),
        (1.0876e5, "109,000"),
        (-0.00000123, "-1.23e-06"),
        (57.11, "57.1"),
        (0, "0"),
        (math.nan, "nan"),
    ],
)
def test_short_numbers(value, text):
    assert short(value) == text


def test_tables_keep_every_digit_in_csv_and_are_readable_in_markdown():
    rows = [
        {"method": words("a, b"), "excess": interval(median_interval([1 / 3, 2 / 3, 1.0]))},
        {"method": words("c"), "time": number(1 / 7)},
    ]
    table = Table("Title", rows, ["A sentence."])
    parsed = list(csv.DictReader(table.csv().splitlines()))
    assert [float(parsed[0][f"excess {name}"]) for name in ("median", "low", "high")] == [2 / 3, 1 / 3, 1.0]
    assert (parsed[0]["method"], parsed[0]["time"], float(parsed[1]["time"])) == ("a, b", "", 1 / 7)
    lines = table.markdown("The caption.").splitlines()
    assert lines[0] == "# Title"
    assert "| a, b | 0.667 [0.333, 1] |  |" in lines
    assert "- A sentence." in lines and "The caption." in lines
    assert Cell("c", {"": "c"}) == words("c")


def test_a_write_that_is_interrupted_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "figure.png"
    files.write(path, b"old")

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.write(path, b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["figure.png"]
    assert path.read_bytes() == b"old"


# The shape of Figure 1, from real runs at the paper's size


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The runs that the facts below are about: a hundred epochs where the end matters, else five."""

    def to_the_end(config):
        few = config["method"] == "oplora" and config["iters"] <= 8
        if config["task"] == "full batch":
            return few or config["method"] in ("lora sgd", "lora adamw")
        return config["method"] == "svdlora" or (few and config["iters"] < 8 and "momentum_rank" not in config)

    configs = [config for config in linear.configurations(epochs=100) if to_the_end(config)]
    configs += [config for config in linear.configurations(epochs=5) if config["method"] in ("svdlora", "oplora")]
    return run_study(linear.run, configs, tmp_path_factory.mktemp("linear"), workers=2, progress=False)


def excess(real, task, method, epoch, *, epochs=100, **wanted):
    """Median excess after an epoch."""
    (found,) = methods(real, task=task, method=method, epochs=epochs, **wanted)
    return np.median(found.values("excess")[:, epoch])


@pytest.mark.slow
def test_svdlora_is_there_after_one_full_batch_step(real):
    (svd,) = methods(real, task="full batch", method="svdlora", epochs=5)
    assert np.max(np.abs(svd.values("excess")[:, 1]) / svd.values("best")) <= 1e-12


@pytest.mark.slow
def test_more_iterations_bring_a_full_batch_step_closer(real):
    first = [excess(real, "full batch", "oplora", 1, epochs=5, iters=K) for K in (1, 2, 8, 32, 128)]
    assert first == sorted(first, reverse=True)


@pytest.mark.slow
def test_oplora_ends_ahead_of_first_order_lora(real):
    rivals = min(excess(real, "full batch", method, -1) for method in ("lora sgd", "lora adamw"))
    assert all(excess(real, "full batch", "oplora", -1, iters=K) < rivals for K in (1, 2, 8))
    assert all(excess(real, "full batch", "oplora", 5, epochs=5, iters=K) < rivals for K in (32, 128))


@pytest.mark.slow
def test_oplora_ends_below_svdlora_on_mini_batches(real):
    assert excess(real, "mini-batch", "oplora", -1, iters=2) < excess(real, "mini-batch", "svdlora", -1)


@pytest.mark.slow
def test_one_iteration_still_improves_late_on_mini_batches(real):
    assert excess(real, "mini-batch", "oplora", -1, iters=1) < excess(real, "mini-batch", "oplora", 50, iters=1)


@pytest.mark.slow
@pytest.mark.parametrize("K", [1, 2, 8])
def test_a_larger_momentum_rank_is_closer_to_svdlora_early(real, K):
    svd = excess(real, "mini-batch", "svdlora", 1, epochs=5)
    ranks = [{"momentum_rank": None}, {"momentum_rank": 16}, {"momentum_rank": 32}]
    distances = [abs(excess(real, "mini-batch", "oplora", 1, epochs=5, iters=K, **rank) - svd) for rank in ranks]
    assert distances == sorted(distances, reverse=True)
