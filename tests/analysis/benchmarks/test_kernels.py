"""The benchmark measures what it says: the competitors' answers, the roofline, the verdicts, the memory."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

import lorsum as ls

pytest.importorskip("sklearn")
pytest.importorskip("torch")

from analysis.benchmarks.kernels import comparison, competitors, figures, page, problems, roofline, targets
from analysis.benchmarks.kernels.__main__ import command
from analysis.benchmarks.kernels.configurations import configurations
from analysis.benchmarks.kernels.problems import Case
from analysis.benchmarks.kernels.reference_svd import reference_svd
from analysis.benchmarks.recording import collected

DOCS = Path(__file__).parents[3] / "docs"
CASE = Case(30, 20, 3, 7, "float64")


@pytest.mark.parametrize("iters", [1, 2, 8])
def test_listing_1_has_the_iterates_of_lorsum(iters):
    target = problems.problem(CASE)
    name = f"Listing 1 K={iters}"
    X = competitors.to_lowrank(name, competitors.calls([name], target)[name](), CASE.rank)
    expected = ls.lorsum(target, iters=iters, first="V", solver="gram")
    np.testing.assert_allclose(X.U, expected.U, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(X.V, expected.V, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", [*competitors.STANDARD, *competitors.BASELINES[1:]])
def test_every_competitor_approximates_the_target(name):
    target = problems.problem(CASE)
    X = competitors.to_lowrank(name, competitors.calls([name], target)[name](), CASE.rank)
    assert X.rank == CASE.rank
    assert ls.gap(X, target).excess < 1e-2


def test_both_dtypes_have_the_same_target():
    single, double = (problems.problem(CASE._replace(dtype=dtype)) for dtype in ("float32", "float64"))
    assert single.dtype == np.float32
    np.testing.assert_array_equal(single.astype(np.float64).to_dense(), double.to_dense())


def test_factors_are_laid_out_as_in_training():
    W, G, M = problems.weight_gradient_momentum(CASE)
    assert W.U.flags.c_contiguous
    assert all(factor.T.flags.c_contiguous for factor in (W.V, *G, *M))


def test_a_batch_holds_the_single_problems():
    together, singles = problems.batch(CASE, 3)
    np.testing.assert_array_equal(together.to_dense(), [single.to_dense() for single in singles])


@pytest.mark.parametrize("iters", [1, 2, 4])
def test_the_reference_svd_is_that_of_gap(iters):
    target = problems.problem(CASE)
    X = ls.lorsum(target, iters=iters)
    known, measured = reference_svd(target, CASE.rank), ls.gap(X, target)
    assert known.optimal == pytest.approx(measured.optimal, rel=1e-12)
    assert known.accuracy(X).excess == pytest.approx(measured.excess, rel=1e-6, abs=1e-13)
    assert known.accuracy(X).distance == pytest.approx(measured.distance, rel=1e-6, abs=1e-13)


def test_the_roofline_of_a_case_by_hand():
    case = Case(3, 2, 1, 4, "float64")  # 5 rows in all, stacked rank 6
    direct, coefficients = roofline.work(case, iters=2)
    assert direct == (8 * (2 * 2 * 5 * 6 + 2 * 5 * 1), 2 * 5 * (4 * 6 + 3))
    assert coefficients == (8 * (2 * 5 * 6 + 5), 5 * (36 + 12) + 8 * 2 * 36)
    bound_by_bytes, bound_by_operations = roofline.Rates(1.0, 1e9), roofline.Rates(1e9, 1.0)
    assert roofline.least_seconds(case, 2, bound_by_bytes) == coefficients.bytes
    assert roofline.least_seconds(case, 2, bound_by_operations) == direct.operations


def test_rates_from_the_times_of_the_probes():
    case = Case(1000, 1000, 8, 112, "float32")
    rates = roofline.rates(case, {"dot": [1e-3], "axpy": [1e-3], "product": [1.0]}, product=10)
    assert rates == (3 * 4 * 128_000 / 1e-3, 2000)
    for probe in roofline.probes(case, product=10).values():
        probe()


def _record(ours, listing, excess=1e-3, **more):
    seconds = {"auto K=1": [ours], "Listing 1 K=1": [listing]} | {name: [value] for name, value in more.items()}
    config = {"task": "grid", "shape": [84, 120], "rank": 16, "gradient_rank": 16, "dtype": "float64", "threads": 1}
    results = {"seconds": seconds, "excess": dict.fromkeys(seconds, 1e-3) | {"auto K=1": excess}, "rounding": 1e-9}
    return {"config": config | {"seed": 0}, "results": results | {"picked": {"8": "coefficients"}}}


@pytest.mark.parametrize(
    ("records", "value", "passed"),
    [
        ([_record(1, 4), _record(1, 8)], 4, True),
        ([_record(1, 3)], 3, False),
        ([_record(1, 9, excess=1.1e-3)], math.nan, False),  # faster but less accurate
        ([_record(1, 9, excess=1e-3 + 1e-10)], 9, True),  # by rounding
    ],
)
def test_verdict_on_ratios(records, value, passed):
    for number, record in enumerate(records):
        record["config"]["seed"] = number
        record["config"]["gradient_rank"] = 16 + number
    target = next(target for target in targets.TARGETS if "LeNet5" in target.what)
    outcome = target.measure(records)
    assert outcome.passed == passed
    assert outcome.value == pytest.approx(value, nan_ok=True)


def test_verdict_on_times():
    free = next(target for target in targets.TARGETS if "coefficients" in target.what)
    assert free.measure([_record(1, 1, **{"auto K=8": 1.4})]).passed
    assert not free.measure([_record(1, 1, **{"auto K=8": 1.6})]).passed
    exact = next(target for target in targets.TARGETS if "factored" in target.what)
    record = _record(1, 2, factored=1)
    assert not exact.measure([record]).passed  # fast, with a gap
    record["results"]["excess"]["factored"] = 0.0
    assert exact.measure([record]) == (0.5, True, exact.measure([record]).note)


def test_forming_the_matrix_counts_where_it_is_said():
    cases = {"one": _record(1, 1, **{"svds": 9, "form the matrix": 2})["results"]}
    alone = targets.compared(cases, ["auto K=1"], ["svds"], 10)
    both = targets.compared(cases, ["auto K=1"], ["form the matrix", "svds"], 10)
    assert (alone.value, alone.passed) == (9, False)
    assert (both.value, both.passed) == (11, True)


def test_what_was_not_measured_is_said():
    assert "not measured" in page.target_table([])
    assert targets.geometric_mean([1, 4]) == 2


def test_configurations_are_different_and_selectable():
    configs = configurations()
    assert len({json.dumps(config) for config in configs}) == len(configs)
    assert {config["task"] for config in configurations(tasks=["batch"])} == {"batch"}
    with pytest.raises(SystemExit, match="No configuration"):
        command(["--case", "85x121"])


def test_quick_run(tmp_path, capsys):
    arguments = ["--quick", "--records", str(tmp_path / "records"), "--output", str(tmp_path)]
    command(arguments)
    printed = capsys.readouterr().out
    assert "Listing 1, K = 1: never slower" in printed
    text = (tmp_path / "benchmarks.md").read_text(encoding="utf-8")
    for title in ("Targets", "Roofline", "Many adapters", "Overheads", "Memory"):
        assert f"## {title}" in text
    assert len(collected(tmp_path / "benchmarks.json")) == len(configurations(quick=True))
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "records").iterdir()}
    command([*arguments, "--against", str(tmp_path / "benchmarks.json")])  # nothing is measured again
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "records").iterdir()}
    assert " 1.00 (grid 84x120 r=8 R=64 float32 threads=1)" in capsys.readouterr().out


def test_two_runs_are_compared_in_units_of_listing_1():
    before, after = [_record(1, 4)], [_record(3, 6)]  # on a slower machine
    assert comparison.changes(before, after) == {"auto K=1": {"grid 84x120 r=16 R=16 float64 threads=1": 2.0}}
    assert comparison.changes(before, []) == {}


def test_the_published_page_is_what_its_records_say():
    assert DOCS.joinpath("benchmarks.md").read_text(encoding="utf-8") == page.page(collected(DOCS / "benchmarks.json"))


def _drawable(config):
    names = config["competitors"]
    seconds = {name: [1e-5 * sum(config["shape"]) * (1 + len(name))] for name in names}
    return {
        "config": config | {"shape": list(config["shape"])},
        "results": {"seconds": seconds, "excess": dict.fromkeys(names, 1e-9)},
    }


def test_plots_are_drawn_where_there_are_records():
    records = [_drawable(config) for config in configurations(tasks=["grid", "ranks", "iterations"])]
    for figure in (figures.growth_figure, figures.accuracy_figure):
        assert figure(records).startswith(b"\x89PNG")
        assert figure([]) is None
