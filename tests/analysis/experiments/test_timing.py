import gc
import math

import numpy as np
import pytest

from analysis.experiments.timing import in_turns, interleaved, ratio, threads


class Clock:
    """Stands still but for the calls, which take what they are told; the machine slows down from round to round."""

    def __init__(self):
        self.now, self.calls = 0.0, 0

    def __call__(self):
        return self.now

    def taking(self, seconds):
        def call():
            self.calls += 1
            self.now += seconds * (1 + self.calls // 10)
            return seconds

        return call


def test_ratios_are_those_of_the_rounds():
    assert ratio([2.0, 40.0, 6.0], [1.0, 10.0, 2.0]) == 3.0
    assert ratio([2.0, math.nan, math.nan], [1.0, 10.0, 2.0]) == 2.0
    assert ratio([math.nan, 6.0], [2.0, math.nan]) == 3.0  # no round in common


def test_interleaved_times_the_calls():
    clock = Clock()
    calls = {"slow": clock.taking(0.2), "fast": clock.taking(0.1)}
    seconds, answers = interleaved(calls, rounds=1, block=1e-3, budget=100, clock=clock)
    assert answers == {"slow": 0.2, "fast": 0.1}
    assert ratio(seconds["slow"], seconds["fast"]) == pytest.approx(2)


def test_a_slow_competitor_sits_out_once_its_budget_is_spent():
    clock = Clock()
    calls = {"slow": clock.taking(1.0), "fast": clock.taking(1e-4)}
    seconds, _ = interleaved(calls, rounds=4, block=1e-3, budget=1.0, clock=clock)
    assert np.isnan(seconds["slow"]).tolist() == [False, True, True, True]
    assert not np.isnan(seconds["fast"]).any()


def test_blocks_are_as_long_as_asked():
    clock = Clock()
    call = clock.taking(1e-9)
    interleaved({"one": call}, rounds=1, block=1e-6, clock=clock)
    assert clock.calls > 50


def test_threads_are_set_and_set_back():
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    with threads(2):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == before


def test_turns_are_taken_in_rounds_in_changing_order_without_the_garbage_collector():
    orders, enabled = [], gc.isenabled()

    def taking_part(name):
        def measure(number):
            assert not gc.isenabled()
            orders.append((number, name))
            return number

        return measure

    names = ["a", "b", "c"]
    found = in_turns({name: taking_part(name) for name in names}, 8, warm=2)
    assert found == {name: list(range(2, 10)) for name in names}
    assert gc.isenabled() == enabled
    rounds = [tuple(name for number, name in orders if number == k) for k in range(10)]
    assert {tuple(sorted(names)) for names in rounds} == {("a", "b", "c")}
    assert len(set(rounds)) > 1
