"""Brand's updates of a thin SVD, U diag(s) Vᴴ, as pure functions of U, s and V."""

from typing import TypeAlias

from numpy.linalg import LinAlgError

from lorsum._arrays import conj, eps, eye_like, frobenius, is_finite, namespace_of, zeros_like
from lorsum._decompositions import qr, svd
from lorsum.typing import Array

_Triple: TypeAlias = tuple[Array, Array, Array]

# Measured: what rounding leaves of a vector inside the span is below 5 eps, what it leaves of a matrix minus itself 21
_NEW = 10  # a direction is new if so many roundings of the vectors stand out in it
_ZERO = 32  # a singular value is zero below so many roundings of the numbers it came from
_LOSS = 100  # ‖QᴴQ − I‖ above so many roundings times √r calls for re-orthogonalisation


def added(U: Array, s: Array, V: Array, A: Array, B: Array) -> _Triple:
    """U diag(s) Vᴴ + A Bᴴ, by the SVD of the core K of [U P] K [V Q]ᴴ."""
    xp = namespace_of(U)
    dtype = xp.result_type(U.dtype, A.dtype, B.dtype)
    U, V, A, B = (xp.astype(x, dtype, copy=False) for x in (U, V, A, B))
    (A, a), (B, b) = _unit_columns(A), _unit_columns(B)
    U, L = _extended(U, A)
    V, R = _extended(V, B)
    sizes = xp.concat([xp.astype(s, a.dtype, copy=False), a * b])
    K = (L * sizes) @ conj(R).mT
    if not is_finite(K):
        raise LinAlgError("`A` @ `B`.T overflows the dtype; scale the matrix down.")
    P, s, Z = _kept(K, _ZERO * frobenius(sizes[None, :]))
    return U @ P, s, V @ Z


def _extended(Q: Array, A: Array) -> tuple[Array, Array]:
    """[Q P] with an orthonormal basis P of what A adds to Q, and the coefficients of Q and A in it."""
    xp = namespace_of(Q)
    C, N = zeros_like((Q.shape[1], A.shape[1]), Q), A
    for _ in range(2):  # the first pass leaves in N what cancelled in it
        D = conj(Q).mT @ N
        C, N = C + D, N - Q @ D
    P, _, _ = _kept(N, _NEW * A.shape[1] ** 0.5)
    P = P[:, : min(P.shape[1], Q.shape[0] - Q.shape[1])]
    P = qr(P - Q @ (conj(Q).mT @ P))[0]  # a small direction of N was magnified
    top = xp.concat([eye_like(Q.shape[1], Q), C], axis=1)
    bottom = xp.concat([zeros_like((P.shape[1], Q.shape[1]), Q), conj(P).mT @ N], axis=1)
    return xp.concat([Q, P], axis=1), xp.concat([top, bottom], axis=0)


def recompressed(L: Array, s: Array, R: Array) -> _Triple:
    """The SVD of L diag(s) Rᴴ, whatever the columns of L and R are."""
    (U, L), (V, R) = qr(L), qr(R)
    P, s, Z = _kept((L * s) @ conj(R).mT, _ZERO * frobenius(s[None, :]))
    return U @ P, s, V @ Z


def _kept(K: Array, size: Array | float) -> _Triple:
    """Left vectors, values and right vectors of K that stand out from one rounding of a number of that size."""
    xp = namespace_of(K)
    P, s, Zh = svd(K)
    r = int(xp.sum(xp.astype(s > eps(xp, K.dtype) * size, xp.int64)))
    return P[:, :r], s[:r], conj(Zh[:r, :]).mT


def _unit_columns(A: Array) -> tuple[Array, Array]:
    norms = frobenius(A.mT[..., None])
    xp = namespace_of(A)
    return A / xp.where(norms > 0, norms, xp.ones_like(norms)), norms


def padded(Q: Array, p: int) -> tuple[Array, Array]:
    """Q above p rows of zeros, and the unit vectors of those rows."""
    concat = namespace_of(Q).concat
    below = concat([zeros_like((Q.shape[0], p), Q), eye_like(p, Q)])
    return concat([Q, zeros_like((p, Q.shape[1]), Q)]), below


def orthonormal_to_rounding(Q: Array) -> bool:
    """Whether ‖QᴴQ − I‖ is no more than the rounding errors of a few updates."""
    return loss_of_orthogonality(Q) <= _LOSS * eps(namespace_of(Q), Q.dtype) * Q.shape[1] ** 0.5


def loss_of_orthogonality(Q: Array) -> float:
    """‖QᴴQ − I‖, Frobenius."""
    return float(frobenius(conj(Q).mT @ Q - eye_like(Q.shape[1], Q)))
