import numpy as np
import pytest

from analysis.experiments.records import read_records, run_study
from analysis.studies.convergence import SPECTRA, configurations, measured_rate, problem, rates, run, spectrum, table
from lorsum import truncated_svd

SEEN = [name for name in SPECTRA if name != "flat"]  # where 40 iterations reach the asymptotic regime


@pytest.fixture(scope="module")
def cold_starts():
    configs = configurations(seeds=2, tasks=["cold start"])
    return [{"config": config, "results": run(config)} for config in configs]


def test_every_configuration_is_another_one():
    configs = configurations(seeds=2)
    assert len({repr(sorted(config.items())) for config in configs}) == len(configs)
    assert {config["task"] for config in configs} == {
        "cold start",
        "warm start",
        "proximal term",
        "rank",
        "conditioning",
        "acceleration",
        "momentum",
    }


def test_configurations_refuse_an_unknown_task():
    with pytest.raises(ValueError, match=r"`tasks` has .*lukewarm.*cold start"):
        configurations(tasks=["lukewarm"])


def test_asymptotic_rates_agree_with_the_prediction(cold_starts):
    rows = rates(cold_starts)
    assert [row["spectrum"] for row in rows] == list(SPECTRA)
    for row in rows:
        if row["spectrum"] in SEEN:
            assert row["angle"] == pytest.approx(1, rel=0.1), row
            assert row["excess"] == pytest.approx(1, rel=0.1), row


def test_the_table_has_a_line_for_each_case(cold_starts):
    header, _, *lines = table(cold_starts).splitlines()
    assert header.split() == ["start", "spectrum", "η", "rank", "predicted", "angle", "excess"]
    assert [line[7:23].strip() for line in lines] == list(SPECTRA) and lines[-1].split()[-2:] == ["nan", "nan"]


def test_on_a_flat_spectrum_no_rate_is_claimed_but_the_excess_still_falls(cold_starts):
    for record in cold_starts:
        if record["config"]["spectrum"] == "flat":
            results = record["results"]
            assert np.isnan(results["angle_rate"]) and results["angle"][-1] > 0.1
            assert results["excess"][-1] < 1e-3 < results["excess"][8]


def test_curves_fall_at_every_iteration_and_the_angle_at_least_as_predicted(cold_starts):
    for record in cold_starts:
        results = record["results"]
        error, tangent = np.array(results["error"]), np.tan(results["angle"])
        assert (np.diff(error) <= 1e-13 * error[1:]).all()
        # ‖Σ₂T Σ₁⁻¹‖ ≤ σ_{r+1}/σ_r ‖T‖ for each half-step; the first one starts from one of the two angles only
        assert (tangent[2:] <= results["rate"] * tangent[1:-1] * (1 + 1e-6) + 1e-13).all()


@pytest.mark.parametrize("eta", [0.01, 0.1])
def test_one_iteration_is_enough_where_the_step_is_small_against_the_gap(eta):
    for config in configurations(seeds=1, iters=1, tasks=["warm start"]):
        if config["eta"] == eta:
            results = run(config)
            assert results["excess"][1] < eta**2 / 10 < results["excess"][0]


def test_the_proximal_terms_bias_is_quadratic_in_its_weight():
    floors = [run(config)["excess"][-1] for config in configurations(seeds=1, iters=8, tasks=["proximal term"])]
    assert np.allclose(np.diff(np.log10(floors)), 2, atol=0.2)


def test_conditioning_of_the_factors_costs_digits_with_the_gram_matrix_only():
    last = {
        (config["gauge"], config["solver"]): run(config)["distance"][-1]
        for config in configurations(seeds=1, iters=15, tasks=["conditioning"])
    }
    assert last[1.0, "gram"] < 1e-12
    assert last[1e6, "gram"] > 1e3 * last[1e6, "qr"]


def test_accelerations_are_worth_orders_of_magnitude_at_equal_passes(cold_starts):
    (plain,) = (x for x in cold_starts if x["config"]["spectrum"] == "1/i" and x["config"]["seed"] == 0)
    oversampled, krylov, both = map(run, configurations(seeds=1, iters=8, tasks=["acceleration"])[:3])
    assert krylov["passes"] == both["passes"] == oversampled["passes"] == plain["results"]["passes"][:9]
    excess = [results["excess"][4] for results in (plain["results"], oversampled, krylov, both)]
    assert excess[0] > 10 * excess[1] > 100 * excess[2] > 1000 * excess[3]
    # Ritz vectors from r + p columns: the excess falls by ((σ_{r+p+1}/σ_r)²)²
    assert oversampled["excess"][8] / oversampled["excess"][7] == pytest.approx((8 / 13) ** 4, rel=0.1)


def test_momentum_of_larger_rank_has_a_smaller_error():
    results = [run({**config, "steps": 5}) for config in configurations(seeds=1, tasks=["momentum"])]
    errors = np.array([result["error"] for result in results])
    assert (np.diff(errors, axis=0) < 0).all()
    assert all(result["excess"][-1] == pytest.approx(result["limit"]["excess"], rel=0.2) for result in results)


def test_a_record_holds_everything(tmp_path):
    config = configurations(seeds=1, iters=3, tasks=["warm start"])[-1]
    (record,) = run_study(run, [config], tmp_path, workers=1, progress=False)
    assert read_records(tmp_path, study="convergence", task="warm start") == [record]
    results = record["results"]
    assert results["iteration"] == [0, 1, 2, 3]
    for curve in ("error", "excess", "distance", "angle", "condition", "passes"):
        assert len(results[curve]) == 4
    assert {"singular_values", "rate", "angle_rate", "excess_rate"} <= results.keys()
    assert record["config"] == config


def test_problems_have_the_spectrum_they_are_named_for():
    for name in SPECTRA:
        target, init = problem({"spectrum": name, "rank": 8, "seed": 0})
        s = truncated_svd(target, 48).s
        assert np.allclose(s, spectrum(name), atol=1e-14) and s[0] == pytest.approx(1)
        assert init.rank == 8
    target, init = problem({"spectrum": "1/i", "rank": 8, "seed": 0, "eta": 0.5, "gauge": 1e4})
    W, G = target.terms
    assert init is W and target.coefficients == (1, -0.5)
    assert np.allclose(W.singular_values(), 8 / np.arange(1, 9), rtol=1e-8)
    assert np.linalg.cond(W.U) > 1e3
    assert np.allclose(G.singular_values(), spectrum("1/i"))


def test_measured_rate():
    falling = 0.1 * 0.5 ** np.arange(50)
    assert measured_rate(falling, rounding=1e-12, asymptotic=1.0) == pytest.approx(0.5)
    assert measured_rate([*falling[:8], *[1e-15, 1e-11] * 9], rounding=1e-12, asymptotic=1.0) == pytest.approx(0.5)
    assert np.isnan(measured_rate(falling[:3], rounding=1e-12, asymptotic=1.0))  # one ratio is no rate
    assert np.isnan(measured_rate(falling, rounding=1e-12, asymptotic=1e-13))
    assert np.isnan(measured_rate(np.exp(-(np.linspace(0, 5, 20) ** 2)), rounding=1e-12, asymptotic=1.0))
