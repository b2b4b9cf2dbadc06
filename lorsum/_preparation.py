"""What is done to a problem before LoRSum iterates on it, and the way back: metrics, oversampling, compression."""

from collections.abc import Callable

from lorsum._arrays import computing_dtype, normal, scale_of, zeros_like
from lorsum._decompositions import qr
from lorsum.lowrank import LowRank, LowRankSum
from lorsum.metrics import whitened
from lorsum.svd import truncated_svd

__all__ = ["coefficients_cost_less", "compressed", "gram_matrices_cost_less", "prepared"]


def prepared(target, init, dtype, iters, first, metric, method, oversample, rng):
    """The problem that is iterated on, its start, and what leads back from its solution, in this order."""
    computing = computing_dtype(target.namespace, dtype)
    W, X0 = target.astype(computing), init.astype(computing)
    undo: list[Callable] = []
    if metric is not None:
        W, X0, back = whitened(W, X0, metric)
        undo.insert(0, back)
    if oversample:
        X0 = _extended(W, X0, oversample, first, rng)
        undo.insert(0, lambda X: truncated_svd(X, init.rank).to_lowrank())
    if method == "coefficients" and not W.is_factored:
        raise ValueError("`method` is 'coefficients', but a term of `target` is not a LowRank: use 'direct'.")
    if method == "coefficients" or (method == "auto" and coefficients_cost_less(W, X0.rank, iters)):
        W, X0, back = compressed(W, X0)
        undo.insert(0, back)
    return W, X0, undo


def coefficients_cost_less(W, rank, iters):
    """The cost model of ``method="auto"`` with QR: operations, half as many again for a QR, since it runs slower.

    Coefficients cost 6 (m + n) R² + 2R³ to compress, 2 (m + n) Rr to expand, and K (8R²r + 12Rr²) between.
    """
    if not W.is_factored:
        return False
    m, n = W.shape[-2:]
    R, r = sum(term.rank for term in W.terms), rank
    if min(m, n) <= R:
        return False
    compressing = 6 * (m + n) * R**2 + 2 * R**3 + 2 * (m + n) * R * r
    return compressing + iters * (8 * R**2 * r + 12 * R * r**2) < _direct_cost(m + n, R, r, iters)


def gram_matrices_cost_less(shape, R, ranks, iters, dense=False):
    """The same with Gram matrices in the kernels, for sums of the same terms and the ranks of their approximations.

    Fitted to times, from R = 32 to 288 and m + n = 204 to 15,104. A dense term costs 4 m n r operations an iteration,
    or has min(m, n) columns.
    """
    m, n = shape[-2:]
    columns, r = R + dense * min(m, n), sum(ranks)
    by_gram = (m + n) * (0.9 * columns**2 + 40 * columns + 2 * columns * r) + 100 * columns**2
    direct = sum([_direct_cost(m + n, R, rank, iters) for rank in ranks]) + dense * 4 * iters * m * n * r
    return by_gram + iters * 10 * columns**2 * r < direct


def _direct_cost(length, R, r, iters):
    """K (m + n) (4Rr + 6r²) operations."""
    return iters * length * (4 * R * r + 6 * r**2)


def compressed(W, X0):
    """W and X₀ in orthonormal bases of all their factors: small matrices, and the way back.

    X₀ comes first in the QR, so that its triangle is what the QR of X₀ alone would give: no rounding error comes
    between the compressed start and the span of the one that was given.
    """
    xp, terms = W.namespace, W.terms
    if X0 is not terms[0]:
        terms = (X0, *terms)
    (Qu, Ru), (Qv, Rv) = (qr(xp.concat([tuple(A)[side] for A in terms], axis=-1)) for side in (0, 1))
    cores, first = [], 0
    for A in terms:
        cores.append(LowRank._of(*(R[..., first : first + A.rank] for R in (Ru, Rv))))
        first += A.rank
    core = LowRankSum._of(tuple(cores[-len(W.terms) :]), W.coefficients).to_dense()
    return LowRankSum._of((core,), (1,)), cores[0], lambda X: LowRank._of(Qu @ X.U, Qv @ X.V)


def _extended(W, X0, p, first, rng):
    """X₀ with p more columns: random combinations of the target's on the side used first, zeros on the other."""
    used, other = (X0.V, X0.U) if first == "U" else (X0.U, X0.V)
    xp = W.namespace
    if W.is_factored:
        stack = W.stacked()[1 if first == "U" else 0]
        extra = stack / scale_of(stack) @ normal((stack.shape[-1], p), stack, rng)
    else:
        extra = xp.broadcast_to(normal((used.shape[-2], p), used, rng), (*used.shape[:-1], p))
    used = xp.concat([used, extra], axis=-1)
    other = xp.concat([other, zeros_like((*other.shape[:-1], p), other)], axis=-1)
    return LowRank._of(other, used) if first == "U" else LowRank._of(used, other)
