from pathlib import Path

import pytest

from analysis.experiments.command_line import parser


def options(*arguments, **defaults):
    return vars(parser("analysis.studies.linear", "What it does.", **defaults).parse_args(arguments))


def test_options_have_common_names_and_types():
    defaults = {"folder": "records/linear", "seeds": 5, "workers": None, "again": False}
    assert options(**defaults) == {"folder": Path("records/linear"), "seeds": 5, "workers": None, "again": False}
    given = options("--records", "x", "--seeds", "2", "--workers", "1", "--again", **defaults)
    assert given == {"folder": Path("x"), "seeds": 2, "workers": 1, "again": True}


def test_help_tells_the_command_and_the_defaults(capsys):
    with pytest.raises(SystemExit):
        options("--help", seeds=5, workers=None)
    text = capsys.readouterr().out
    assert "usage: python -m analysis.studies.linear" in text
    assert "(default: 5)" in text
    assert "None" not in text


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "two"])
def test_counts_are_whole_numbers_from_1_on(text, capsys):
    with pytest.raises(SystemExit):
        options("--workers", text, workers=None)
    assert f"{text!r} is not a whole number from 1 on" in capsys.readouterr().err
