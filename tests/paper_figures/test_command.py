"""``python -m paper_figures``: what is drawn from which records, and what it says."""

import csv
from types import SimpleNamespace

import pytest
from made_up_records import SMALL, SOURCE, made_up

from analysis.experiments.records import record_path, write_record
from analysis.experiments.sizes import Size
from analysis.studies import linear, mnist
from paper_figures import __main__ as command
from paper_figures import mnist_table

FIGURES = ("figure1", "mnist", "gap")


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """A folder with a record of every run that the command asks for, where running anything is an error."""
    monkeypatch.setattr(mnist.datasets, "mnist", lambda: SimpleNamespace(source=SOURCE))
    longer = SMALL | {"mnist": Size(seeds=2, epochs=4)}
    for name, study in (("linear", linear), ("mnist", mnist)):
        monkeypatch.setattr(study, "REDUCED", SMALL[name])
        monkeypatch.setattr(study, "PAPER", longer[name])
        monkeypatch.setattr(study, "run", None)
    for size in (SMALL, longer):
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
    [(["--only", "figure9"], list(FIGURES)), (["--workers", "0"], ["from 1 on"]), (["--workers", "many"], ["'many'"])],
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
    monkeypatch.setattr(linear, "REDUCED", Size(seeds=1, epochs=2))
    assert len(draw(tmp_path, "--only", "figure1", "--workers", "1")) == 5
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "records" / "linear").iterdir()}
    assert len(written) == len(linear.configurations(seeds=1, epochs=2))

    monkeypatch.setattr(linear, "run", None)
    draw(tmp_path, "--only", "figure1", "--workers", "1")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "records" / "linear").iterdir()} == written
