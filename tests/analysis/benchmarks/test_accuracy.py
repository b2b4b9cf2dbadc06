"""Every promise of the accuracy table is kept."""

import pytest
import threadpoolctl

from analysis.benchmarks.accuracy import ROUNDING, ROWS, command, in_condition, table


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.what)
def test_promise(row):
    assert row.measure() <= row.limit


def test_a_broken_promise_is_said():
    text, kept = table([ROWS[0]._replace(limit=0.0)])
    assert "**no**" in text
    assert not kept


def test_the_paper_s_solves_would_break_the_promise():
    """The unit is no excuse: what squares the condition number is seen."""
    assert in_condition(solver="gram") > 10 * ROUNDING


def test_the_page_says_which_kernels_ran(tmp_path, monkeypatch):
    monkeypatch.setattr("analysis.benchmarks.accuracy.table", lambda: (table(ROWS[:1])[0], True))
    assert command(["--output", str(tmp_path)]) == 0
    page = (tmp_path / "accuracy.md").read_text(encoding="utf-8")
    kernels = {pool.get("architecture") for pool in threadpoolctl.threadpool_info()} - {None}
    assert all(name in page for name in kernels)
    assert ROWS[0].what in page
