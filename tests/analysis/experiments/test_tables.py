import csv
import math
import re
from typing import NamedTuple

import pytest

from analysis.experiments.tables import (
    Cell,
    Table,
    csv_text,
    duration,
    interval,
    markdown,
    mean_std,
    number,
    plain,
    short,
    size,
    words,
)

TABLE = Table("T", [{"a": words("x"), "b": mean_std(98.5, 0.069)}, {"c": Cell("1.0", {"": 1.04})}], ["A sentence."])


def test_markdown_is_aligned_and_leaves_cells_as_they_are_written():
    text = markdown(["what", "K"], [["‖W|", "1e-3"], ["µs", 10.50]])
    assert text == "| what   | K    |\n|--------|------|\n| ‖W\\|   | 1e-3 |\n| µs     | 10.5 |\n"
    assert plain(["a"], [["0.10"]]) == "a\n----\n0.10\n"


def test_csv_has_every_value_in_full_and_markdown_what_is_read():
    assert csv_text(["x"], [[0.1], ["a,b"]]) == 'x\n0.1\n"a,b"\n'
    assert TABLE.csv() == "a,b mean,b std,c\nx,98.5,0.069,\n,,,1.04\n"
    page = TABLE.markdown("The caption.")
    assert page.startswith("# T\n\n| a   | b            | c   |\n")
    assert page.endswith("|\n\n- A sentence.\n\nThe caption.\n")
    assert TABLE.texts() == [["x", "98.50 ± 0.07", ""], ["", "", "1.0"]]


def test_mean_and_standard_deviation():
    assert mean_std(98.5, 0.069) == Cell("98.50 ± 0.07", {"mean": 98.5, "std": 0.069})
    assert mean_std(98.5).text == "98.50"
    assert math.isnan(mean_std(98.5).values["std"])
    assert mean_std(50, 0.31, 1, name="standard error") == Cell("50.0 ± 0.3", {"mean": 50.0, "standard error": 0.31})


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (short(4660), "4,660"),
        (short(1.23456e-7), "1.23e-07"),
        (duration(1.5), "1.5 s"),
        (duration(25e-6), "25 µs"),
        (duration(3e-8), "0.03 µs"),
        (size(2**21), "2 MiB"),
        (size(1536), "1.5 KiB"),
    ],
)
def test_numbers(made, text):
    assert made == text


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


class Interval(NamedTuple):
    median: float
    low: float
    high: float


def test_tables_keep_every_digit_in_csv_and_are_readable_in_markdown():
    rows = [
        {"method": words("a, b"), "excess": interval(Interval(2 / 3, 1 / 3, 1.0))},
        {"method": words("c"), "time": number(1 / 7)},
    ]
    table = Table("Title", rows, ["A sentence."])
    parsed = list(csv.DictReader(table.csv().splitlines()))
    assert [float(parsed[0][f"excess {name}"]) for name in ("median", "low", "high")] == [2 / 3, 1 / 3, 1.0]
    assert (parsed[0]["method"], parsed[0]["time"], float(parsed[1]["time"])) == ("a, b", "", 1 / 7)
    lines = [re.sub(" +", " ", line) for line in table.markdown("The caption.").splitlines()]
    assert lines[0] == "# Title"
    assert "| a, b | 0.667 [0.333, 1] | |" in lines
    assert "- A sentence." in lines and "The caption." in lines
    assert Cell("c", {"": "c"}) == words("c")
