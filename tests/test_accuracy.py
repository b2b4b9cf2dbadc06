"""Every promise of the accuracy table is kept."""

import pytest

from analysis.accuracy import ROWS, table


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.what)
def test_promise(row):
    assert row.measure() <= row.limit


def test_a_broken_promise_is_said():
    text, kept = table([ROWS[0]._replace(limit=0.0)])
    assert "**no**" in text
    assert not kept
