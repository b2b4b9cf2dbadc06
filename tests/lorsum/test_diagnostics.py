import json

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st
from reference import EPS, dense, truncated
from scipy.sparse.linalg import aslinearoperator
from strategies import generators, normal_lowrank, orthonormal, problems, with_spectrum

from lorsum import Gap, History, LowRank, LowRankSum, gap, lorsum, principal_angles, truncated_svd

norm = scipy.linalg.norm


def textbook_gap(X, W, rank):
    """The four numbers from dense matrices."""
    X, W, W_r = dense(X), dense(W), truncated(W, rank)
    error, optimal = norm(W - X), norm(W - W_r)
    return Gap(error, optimal, error / optimal - 1, norm(X - W_r) / norm(W_r))


def example(seed=0, dtype=np.float64, batch=()):
    rng = np.random.default_rng(seed)
    W, G = (LowRank(*(rng.normal(size=(*batch, d, k)).astype(dtype) for d in (9, 7))) for k in (3, 4))
    return W, W - 0.1 * G


# --- gap ---


@given(problems(smallest=3), st.data())
def test_gap_is_that_of_the_dense_matrices(problem, data):
    X, target = problem.W, problem.target
    full = min(target.shape)
    rank = data.draw(st.one_of(st.none(), st.integers(1, full)))
    actual = gap(X, target, rank)
    size = X.norm() + 0.1 * problem.G.norm()
    r = X.rank if rank is None else rank
    s = scipy.linalg.svdvals(dense(target))
    assert all(type(x) is float for x in actual)
    assert abs(actual.error - norm(dense(target) - dense(X))) <= 100 * EPS * size
    assert abs(actual.optimal - norm(s[r:])) <= 100 * EPS * size
    if norm(s[r:]) > 1e-6 * size:
        assert actual.excess == pytest.approx(textbook_gap(X, target, r).excess, abs=1e-9, rel=1e-9)
        if s[r - 1] - s[r] > 1e-6 * size:  # else W_r is anyone's
            assert actual.distance == pytest.approx(textbook_gap(X, target, r).distance, abs=1e-9)


@pytest.mark.parametrize("size", [1e-3, 1e-8, 1e-13])
def test_tiny_errors_and_distances_do_not_cancel(size):
    rng = np.random.default_rng(0)
    W, G = with_spectrum(rng, 30, 20, np.array([3.0, 2, 1])), normal_lowrank(rng, 30, 20, 4)
    G = LowRank(G.U / G.norm(), G.V)
    actual = gap(W, W + size * G)
    assert actual.error == pytest.approx(size, rel=1e-2)
    # what the best approximation cannot catch either: the part of G outside of both subspaces
    P, Q = (scipy.linalg.qr(factor, mode="economic")[0] for factor in W)
    outside = (np.eye(30) - P @ P.T) @ dense(G) @ (np.eye(20) - Q @ Q.T)
    assert actual.optimal == pytest.approx(size * norm(outside), rel=max(1e-2, 10 * size))
    inside = dense(G) - outside
    assert actual.distance == pytest.approx(size * norm(inside) / W.norm(), rel=max(1e-2, 10 * size))


def test_a_tiny_excess_is_measured_to_rounding():
    rng = np.random.default_rng(0)
    s = np.array([4.0, 3, 2, 1])
    P, Q = orthonormal(rng, 30, 4), orthonormal(rng, 20, 4)
    for angle in (1e-3, 1e-5, 1e-6):
        # in the plane of one kept and one lost vector, the error is 1 + (σ₁² / σ₄² …) angle² to leading order
        turned = np.cos(angle) * P[:, 0] + np.sin(angle) * P[:, 3]
        X = LowRank(
            np.column_stack([turned, P[:, 1:3]]), dense(LowRank(P * s, Q)).T @ np.column_stack([turned, P[:, 1:3]])
        )
        expected = np.sqrt(1 + (s[0] ** 2 - s[3] ** 2) * np.sin(angle) ** 2) - 1
        assert gap(X, LowRank(P * s, Q)).excess == pytest.approx(expected, rel=1e-3, abs=20 * EPS)


def test_where_the_optimum_is_zero_the_excess_is_zero_or_infinite():
    W, _ = example()
    assert gap(W, W).excess == 0
    assert gap(W, W + 0 * W).excess == 0
    assert gap(LowRank(2 * W.U, W.V), W).excess == np.inf
    assert gap(LowRank(2 * W.U, W.V), W).distance == pytest.approx(1)
    assert gap(W, W).distance < 2 * max(W.shape) * EPS  # what an SVD may leave of the matrix that it is of
    assert gap(lorsum(W + W), W + W).excess == 0  # zero to rounding


def test_the_excess_is_never_negative_at_equal_rank():
    for seed in range(50):
        _, target = example(seed)
        assert gap(truncated_svd(target, 3).to_lowrank(), target).excess >= 0


def test_zero_matrices_have_a_gap_too():
    W, _ = example()
    zero = LowRank(0 * W.U, W.V)
    assert gap(zero, zero) == (0, 0, 0, 0)
    assert gap(W, zero) == (pytest.approx(W.norm()), 0, np.inf, np.inf)
    assert gap(zero, W)[:3] == (pytest.approx(W.norm()), pytest.approx(0, abs=1e-14), np.inf)


@pytest.mark.parametrize("size", [1e150, 1e-150])
def test_gap_scales(size):
    X, target = example()
    (A, B), (_, c) = target.terms, target.coefficients
    X_, A, B = (LowRank(size * x.U, size * x.V) for x in (X, A, B))
    scaled, plain = gap(X_, A + c * B), gap(X, target)
    assert scaled.error / size / size == pytest.approx(plain.error)
    assert scaled.optimal / size / size == pytest.approx(plain.optimal)
    assert scaled[2:] == pytest.approx(plain[2:])


def test_single_precision_is_measured_in_double():
    X, target = example(dtype=np.float32)
    wide = gap(LowRank(*(x.astype(np.float64) for x in X)), LowRankSum(
        [LowRank(*(x.astype(np.float64) for x in term)) for term in target.terms], target.coefficients
    ))  # fmt: skip
    assert gap(X, target) == pytest.approx(wide, rel=1e-13)
    best = truncated_svd(target, 3).to_lowrank()
    assert gap(best, target).excess < 1e-9  # quadratic in the rounding of single precision


def test_half_precision_is_measured_in_double_too():
    X, target = example(dtype=np.float16)
    assert gap(X, target) == pytest.approx(textbook_gap(
        LowRank(*(x.astype(np.float64) for x in X)),
        sum(c * dense(LowRank(*(x.astype(np.float64) for x in term)))
            for term, c in zip(target.terms, target.coefficients, strict=True)),
        3,
    ), rel=1e-12)  # fmt: skip


@pytest.mark.parametrize("as_term", [dense, lambda A: aslinearoperator(dense(A))], ids=["dense", "operator"])
def test_dense_and_operator_targets(as_term):
    X, target = example()
    assert gap(X, as_term(target)) == pytest.approx(textbook_gap(X, target, 3), rel=1e-12)
    assert gap(dense(X), target, rank=3) == pytest.approx(textbook_gap(X, target, 3), rel=1e-12)


def test_complex_matrices():
    rng = np.random.default_rng(0)
    X, G = (normal_lowrank(rng, 9, 7, 3, np.complex128) for _ in range(2))
    assert gap(X, X - 0.1 * G) == pytest.approx(textbook_gap(X, dense(X) - 0.1 * dense(G), 3), rel=1e-11)


def test_a_batch_has_a_gap_for_each_matrix():
    X, target = example(batch=(2, 3))
    X.U[0, 0] = target.terms[0].U[0, 0] = 0
    actual = gap(X, target)
    assert all(x.shape == (2, 3) for x in actual)
    for i in np.ndindex(2, 3):
        alone = gap(
            LowRank(X.U[i], X.V[i]),
            LowRankSum([LowRank(A.U[i], A.V[i]) for A in target.terms], target.coefficients),
        )
        np.testing.assert_allclose([x[i] for x in actual], alone, rtol=1e-11)


def test_gap_is_the_same_in_every_array_library(library):
    X, target = example()
    ours = gap(
        LowRank(*map(library, X)),
        LowRankSum([LowRank(*map(library, term)) for term in target.terms], target.coefficients),
    )
    assert all(type(x) is float for x in ours)
    assert ours == pytest.approx(textbook_gap(X, target, 3), rel=1e-11)


# --- principal angles ---


@given(generators(), st.integers(2, 12), st.data())
def test_angles_are_those_of_scipy(rng, n, data):
    p, q = data.draw(st.tuples(*[st.integers(1, n)] * 2))
    A, B = rng.normal(size=(n, p)), rng.normal(size=(n, q))
    expected = scipy.linalg.subspace_angles(A, B)
    # next to a large angle SciPy takes a small one from its cosine, which ends near 1e-8
    np.testing.assert_allclose(principal_angles(A, B), expected, rtol=0, atol=1e-6 if p + q >= n else 1e-12)
    np.testing.assert_allclose(principal_angles(B, A), principal_angles(A, B), rtol=0, atol=1e-13)


@given(generators(), st.lists(st.floats(-15, 0), min_size=1, max_size=4))
def test_angles_of_every_size_keep_their_digits_side_by_side(rng, exponents):
    angles = np.sort(np.pi / 2 * 10.0 ** np.array(exponents))[::-1]
    k = len(angles)
    Q = orthonormal(rng, 20, 2 * k)
    A, B = Q[:, :k], Q[:, :k] * np.cos(angles) + Q[:, k:] * np.sin(angles)
    np.testing.assert_allclose(principal_angles(A, B), angles, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("angle", [1e-12, 1e-8, 1e-4, 0.5, np.pi / 4, 1.5, np.pi / 2 - 1e-12, np.pi / 2])
def test_angles_are_accurate_from_tiny_to_right(angle):
    rng = np.random.default_rng(0)
    Q = orthonormal(rng, 20, 4)
    A, B = Q[:, :2], np.column_stack([np.cos(angle) * Q[:, 0] + np.sin(angle) * Q[:, 2], Q[:, 1]])
    actual = principal_angles(A @ rng.normal(size=(2, 2)), B @ rng.normal(size=(2, 2)))
    np.testing.assert_allclose(actual, [angle, 0], rtol=1e-12, atol=4e-15)


def test_equal_subspaces_and_a_subspace_of_another_have_no_angle():
    A = np.random.default_rng(0).normal(size=(20, 5))
    assert principal_angles(A, A @ np.diag([1.0, 2, 3, 4, 5])).max() < 1e-14
    assert principal_angles(A, A[:, :2]).max() < 1e-14


def test_complex_subspaces():
    rng = np.random.default_rng(0)
    A, B = (rng.normal(size=(9, k)) + 1j * rng.normal(size=(9, k)) for k in (2, 3))
    np.testing.assert_allclose(principal_angles(A, B), scipy.linalg.subspace_angles(A, B), atol=1e-13)


def test_a_batch_of_subspaces():
    rng = np.random.default_rng(0)
    A, B = rng.normal(size=(2, 3, 9, 2)), rng.normal(size=(2, 3, 9, 4))
    actual = principal_angles(A, B)
    for i in np.ndindex(2, 3):
        np.testing.assert_allclose(actual[i], scipy.linalg.subspace_angles(A[i], B[i]), atol=1e-13)


def test_angles_are_the_same_in_every_array_library(library):
    rng = np.random.default_rng(0)
    A, B = rng.normal(size=(9, 2)), rng.normal(size=(9, 3))
    actual = principal_angles(library(A), library(B))
    np.testing.assert_allclose(np.asarray(actual), scipy.linalg.subspace_angles(A, B), atol=1e-13)


# --- History ---


@pytest.fixture
def recorded():
    W, target = example()
    history = History()
    lorsum(target, iters=4, callback=history)
    return W, target, history


def test_history_records_every_iteration(recorded):
    _, target, history = recorded
    U, _, Vh = scipy.linalg.svd(dense(target))
    assert len(history) == 5
    assert history.iteration == [0, 1, 2, 3, 4]
    assert history.passes == [0, 2, 4, 6, 8]
    for k in range(5):
        X = lorsum(target, iters=k)
        measured = textbook_gap(X, target, 3)
        assert history.error[k] == pytest.approx(measured.error)
        assert history.excess[k] == pytest.approx(measured.excess, abs=1e-12)
        assert history.distance[k] == pytest.approx(measured.distance, abs=1e-12)
        angles = [scipy.linalg.subspace_angles(*pair)[0] for pair in ((X.U, U[:, :3]), (X.V, Vh[:3].T))]
        assert history.angle[k] == pytest.approx(max(angles), rel=1e-6)
        assert history.condition[k] == pytest.approx(max(map(np.linalg.cond, X)), rel=1e-8)


def test_history_compares_with_the_rank_it_is_given():
    _, target = example()
    history = History(rank=2)
    lorsum(target, iters=1, callback=history)
    measured = gap(lorsum(target), target, 2)
    assert history.optimal[1] == pytest.approx(measured.optimal)
    assert history.distance[1] == pytest.approx(measured.distance)
    assert history.excess[1] == pytest.approx(measured.excess)
    assert history.excess[1] < 0  # rank 3 against the best of rank 2


def test_a_history_that_is_used_again_starts_anew():
    history = History()
    for seed in (0, 1):
        _, target = example(seed)
        X = lorsum(target, iters=2, callback=history)
        assert history.iteration == [0, 1, 2]
        assert history.excess[-1] == pytest.approx(gap(X, target).excess)


def test_history_exports_what_json_can_write(recorded):
    *_, history = recorded
    exported = history.to_dict()
    assert json.loads(json.dumps(exported)) == exported
    assert exported["error"] == history.error
    exported["error"].clear()
    assert len(history.error) == 5


def test_history_of_a_fresh_adapter_exports_and_prints_infinities():
    W, _ = example()
    history = History()
    lorsum(LowRank(0 * W.U, W.V) - W, iters=2, callback=history)
    assert history.condition[0] == np.inf
    assert json.loads(json.dumps(history.to_dict())) == history.to_dict()
    assert "inf" in repr(history)
    assert "inf" in history._repr_html_()


def test_history_prints_as_a_table(recorded):
    *_, history = recorded
    lines = repr(history).splitlines()
    assert lines[0].split() == list(History.columns)
    assert [line.split()[0] for line in lines[1:]] == ["0", "1", "2", "3", "4"]
    html = history._repr_html_()
    assert html.startswith("<table>") and html.endswith("</table>")
    assert html.count("<tr>") == 6
    assert all(f"<th>{column}</th>" in html for column in History.columns)


def test_an_empty_history_prints_too():
    assert repr(History()).split() == list(History.columns)
    assert len(History()) == 0
    assert "<th>excess</th>" in History()._repr_html_()
    assert History().to_dict()["excess"] == []


def test_history_draws_itself(recorded):
    plt = pytest.importorskip("matplotlib.pyplot")
    *_, history = recorded
    axes = history.plot()
    assert axes.get_yscale() == "log"
    excess, angle = axes.get_lines()
    np.testing.assert_array_equal(excess.get_ydata(), history.excess)
    np.testing.assert_array_equal(angle.get_ydata(), history.angle)
    assert len(axes.get_legend().get_texts()) == 2
    own = plt.figure().gca()
    assert history.plot(own, color="k", label="K =") is own
    assert {line.get_color() for line in own.get_lines()} == {"k"}
    assert all(text.get_text().startswith("K =") for text in own.get_legend().get_texts())
    plt.close("all")


def test_a_history_leaves_rounding_errors_out_of_its_plot():
    plt = pytest.importorskip("matplotlib.pyplot")
    W, _ = example()
    history = History()
    lorsum(W + W, iters=3, callback=history)  # exact after the first iteration
    excess, _ = history.plot().get_lines()
    assert history.excess[2] == 0
    assert np.isnan(excess.get_ydata()[2])
    plt.close("all")


@pytest.mark.parametrize("library", ["torch", "jax"], indirect=True)
def test_history_follows_other_array_libraries(library, recorded):
    _, target, history = recorded
    other = History()
    target = LowRankSum([LowRank(*map(library, term)) for term in target.terms], target.coefficients)
    lorsum(target, iters=4, callback=other)
    for column in History.columns:
        assert getattr(other, column) == pytest.approx(getattr(history, column), rel=1e-6, abs=1e-12), column


def test_history_of_complex_matrices():
    rng = np.random.default_rng(0)
    W, G = (normal_lowrank(rng, 9, 7, 3, np.complex128) for _ in range(2))
    history = History()
    lorsum(W - 0.01 * G, iters=20, callback=history)
    assert history.angle[20] < 1e-10


def test_history_refuses_a_batch():
    _, target = example(batch=(2,))
    with pytest.raises(ValueError, match="`callback` is a History, which follows one matrix"):
        lorsum(target, callback=History())


# --- bad input ---


@pytest.mark.parametrize(
    ("X", "target", "rank", "kind", "message"),
    [
        ("X", example()[1], None, TypeError, "`approx` is a str"),
        (example()[0], "W", None, TypeError, "`target` is a str"),
        (example()[0].T, example()[1], None, ValueError, r"`approx` has shape \(7, 9\) and `target` \(9, 7\)"),
        (
            example()[0],
            example(batch=(2,))[1],
            None,
            ValueError,
            r"`approx` has shape \(9, 7\) and `target` \(2, 9, 7\)",
        ),
        (example()[0], example()[1], 8, ValueError, "`rank` is 8, above min"),
        (example()[0], example()[1], 0, ValueError, "`rank` is 0"),
        (example()[0], example()[1], 2.0, TypeError, "`rank` is 2.0"),
    ],
    ids=str,
)
def test_gaps_that_make_no_sense_are_refused(X, target, rank, kind, message):
    with pytest.raises(kind, match=message):
        gap(X, target, rank)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("factor", ["U", "V"])
def test_gaps_of_values_that_are_not_finite_are_refused(bad, factor):
    X, target = example()
    broken, _ = example()
    getattr(broken, factor)[0, 0] = bad
    with pytest.raises(ValueError, match=f"`approx` has a NaN or an infinity in its {factor}"):
        gap(broken, target)
    with pytest.raises(ValueError, match=rf"`target` has a NaN or an infinity in its terms\[1\].{factor}"):
        gap(X, X - broken)


def test_gaps_across_libraries_are_refused():
    torch = pytest.importorskip("torch")
    X, target = example()
    with pytest.raises(TypeError, match="arrays of one library are needed"):
        gap(LowRank(*map(torch.as_tensor, X)), target)


@pytest.mark.parametrize(
    ("A", "B", "message"),
    [
        (np.ones((3, 1)), np.ones((4, 1)), "`A` has columns of length 3 and `B` 4"),
        (np.full((3, 1), np.nan), np.ones((3, 1)), "`A` has a NaN"),
        (np.ones((3, 1)), np.full((3, 1), np.inf), "`B` has a NaN"),
    ],
)
def test_angles_that_make_no_sense_are_refused(A, B, message):
    with pytest.raises(ValueError, match=message):
        principal_angles(A, B)


def test_angles_take_lists_and_refuse_vectors():
    assert principal_angles([[1.0], [0.0]], [[0.0], [1.0]]) == pytest.approx([np.pi / 2])
    with pytest.raises(ValueError, match="`A` has shape"):
        principal_angles(np.ones(3), np.ones((3, 1)))


def test_angles_take_half_precision():
    assert principal_angles(np.eye(3, 1, dtype=np.float16), np.eye(3, 2, dtype=np.float16))[0] == 0
