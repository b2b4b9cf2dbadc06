"""Decompositions and norms of JAX arrays: on a CPU one matrix of a batch after another.

A batched call of LAPACK, as ``jax.numpy.linalg`` makes it, hands parts of it to the threads that XLA's operations
run in, and waits for them in one of these threads. As many such calls at a time as there are threads wait for ever. All
of jaxlib's decompositions do this, where the batch is large enough. A loop over the batch waits for nothing, and is as
fast as measured. Elsewhere than on a CPU a batch is one call.

Derivatives are products with what was decomposed, so that no other batched call enters by them. Where columns are
dependent or values equal, and a derivative does not exist, theirs is right for what a change of basis does not change.
"""

import functools

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir


def _operation(name, decomposed):
    """A function of matrices, or of batches of them, as an operation of JAX; it gives a tuple of arrays."""
    operation = Primitive(name)
    operation.multiple_results = True

    def one_after_another(*arrays):
        *batch, _, _ = arrays[0].shape
        if not batch:
            return decomposed(*arrays)
        flat = [jax.lax.collapse(x, 0, len(batch)) for x in arrays]
        results = jax.lax.map(lambda matrices: tuple(decomposed(*matrices)), tuple(flat))
        return tuple(x.reshape(*batch, *x.shape[1:]) for x in results)

    def batched(arrays, axes):
        size = next(x.shape[axis] for x, axis in zip(arrays, axes, strict=True) if axis is not None)
        stacked = [
            jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
            for x, axis in zip(arrays, axes, strict=True)
        ]
        results = operation.bind(*stacked)
        return results, [0] * len(results)

    operation.def_impl(jax.jit(operation.bind))
    operation.def_abstract_eval(lambda *avals: jax.make_jaxpr(decomposed)(*avals).out_avals)
    batching.primitive_batchers[operation] = batched
    mlir.register_lowering(operation, mlir.lower_fun(decomposed, multiple_results=True))
    mlir.register_lowering(operation, mlir.lower_fun(one_after_another, multiple_results=True), platform="cpu")
    return operation


_qr = _operation("qr", lambda A: tuple(jnp.linalg.qr(A)))
_svd = _operation("svd", lambda A: tuple(jnp.linalg.svd(A, full_matrices=False)))
_svdvals = _operation("svdvals", lambda A: (jnp.linalg.svd(A, compute_uv=False),))
_eigh = _operation("eigh", lambda A: tuple(jnp.linalg.eigh(A)))
_cholesky = _operation("cholesky", lambda A: (jnp.linalg.cholesky(A),))
_solve = _operation("solve", lambda A, B: (jnp.linalg.solve(A, B),))


@jax.custom_jvp
def qr(A):
    """Q and R of the reduced QR decomposition."""
    return tuple(_qr.bind(A))


@qr.defjvp
def _(primals, tangents):
    """Of A = QR, the first m columns of which are square where A is wide."""
    (A,), (dA,) = primals, tangents
    Q, R = qr(A)
    k = Q.shape[-1]
    X = dA[..., :k] @ _inverse_of_triangle(R[..., :k])
    inner = _adjoint(Q) @ X
    lower = jnp.tril(inner, -1)
    turn = lower - _adjoint(lower) + _diagonal(inner - inner.real)  # antihermitian: Q turns in its own span
    dQ = Q @ (turn - inner) + X
    return (Q, R), (dQ, _adjoint(dQ) @ A + _adjoint(Q) @ dA)


@jax.custom_jvp
def triangle(A):
    """R of A = QR, up to a rotation of it; see :func:`lorsum._decompositions.triangle`."""
    return _qr.bind(A)[1]


@triangle.defjvp
def _(primals, tangents):
    """With Q held fast, which is a basis of A's columns: what leaves their span is of second order in norms."""
    (A,), (dA,) = primals, tangents
    Q, R = _qr.bind(_once(A))
    return R, _adjoint(Q) @ dA


@jax.custom_jvp
def svd(A):
    """U, s and Vh of the reduced singular value decomposition."""
    return tuple(_svd.bind(A))


@svd.defjvp
def _(primals, tangents):
    (A,), (dA,) = primals, tangents
    U, s, Vh = svd(A)
    V = _adjoint(Vh)
    E = _adjoint(U) @ dA @ V
    row, column = s[..., None, :], s[..., :, None]
    F = _inverse((row - column) * (row + column)).astype(A.dtype)
    size = _inverse(row).astype(A.dtype)
    right, left = E * row, column * E  # E diag(s) and diag(s) E
    rotated = U @ (F * (right + _adjoint(right)) + _diagonal(0.5 * (E - _adjoint(E))) * size)
    dU = rotated + _outside(U, dA @ V) * size
    dV = V @ (F * (left + _adjoint(left))) + _outside(V, _adjoint(dA) @ U) * size
    return (U, s, Vh), (dU, jnp.diagonal(E, axis1=-2, axis2=-1).real, _adjoint(dV))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def best_of_rank(A, rank):
    """All singular values, and the truncated singular value decomposition as a matrix."""
    U, s, Vh = _svd.bind(A)
    return s, (U[..., :rank] * s[..., None, :rank].astype(A.dtype)) @ Vh[..., :rank, :]


@best_of_rank.defjvp
def _(rank, primals, tangents):
    """First-order perturbation of singular subspaces: gaps divide only between what is kept and the rest."""
    (A,), (dA,) = primals, tangents
    U, s, Vh = _svd.bind(_once(A))
    V, size = _adjoint(Vh), s.astype(A.dtype)
    U_r, V_r = U[..., :rank], V[..., :rank]
    A_r = (U_r * size[..., None, :rank]) @ _adjoint(V_r)
    E, row, column = _adjoint(U) @ dA @ V, size[..., :, None], size[..., None, :]
    kept = jnp.arange(s.shape[-1]) < rank
    larger = jnp.where(kept[:, None], row, column)
    mixed = (larger**2 * E + row * column * _adjoint(E)) * _inverse(2 * larger**2 - row**2 - column**2)
    inside = jnp.where(kept[:, None] & kept, E, jnp.where(kept[:, None] ^ kept, mixed, 0))
    outside = _outside(U, dA @ V_r) @ _adjoint(V_r) + U_r @ _adjoint(_outside(V, _adjoint(dA) @ U_r))
    return (s, A_r), (jnp.diagonal(E, axis1=-2, axis2=-1).real, U @ inside @ Vh + outside)


@jax.custom_jvp
def svdvals(A):
    """Singular values, descending."""
    return _svdvals.bind(A)[0]


@svdvals.defjvp
def _(primals, tangents):
    (A,), (dA,) = primals, tangents
    U, s, Vh = svd(A)
    return s, jnp.einsum("...ik,...ij,...kj->...k", U.conj(), dA, Vh.conj()).real


@jax.custom_jvp
def eigh(A):
    """Eigenvalues, ascending, and eigenvectors of a Hermitian matrix."""
    return tuple(_eigh.bind(A))


@eigh.defjvp
def _(primals, tangents):
    (A,), (dA,) = primals, tangents
    w, V = eigh(A)
    E = _adjoint(V) @ (dA + _adjoint(dA)) @ V / 2
    F = _inverse(w[..., None, :] - w[..., :, None]).astype(A.dtype)
    return (w, V), (jnp.diagonal(E, axis1=-2, axis2=-1).real, V @ (F * E))


@jax.custom_jvp
def cholesky(A):
    """L with A = L Lᴴ, of NaN where A is not positive definite."""
    return _cholesky.bind(A)[0]


@cholesky.defjvp
def _(primals, tangents):
    (A,), (dA,) = primals, tangents
    L = cholesky(A)
    inverse = solve(L, _identity_like(L))
    E = inverse @ (dA + _adjoint(dA)) @ _adjoint(inverse) / 2
    return L, L @ (jnp.tril(E) - _diagonal(E) / 2)


@jax.custom_jvp
def solve(A, B):
    """X with A X = B."""
    batch = jnp.broadcast_shapes(A.shape[:-2], B.shape[:-2])
    A, B = (jnp.broadcast_to(x, (*batch, *x.shape[-2:])) for x in (A, B))
    return _solve.bind(A, B)[0]


@solve.defjvp
def _(primals, tangents):
    (A, B), (dA, dB) = primals, tangents
    inverse = solve(A, _identity_like(A))
    X = solve(A, B)
    return X, inverse @ (dB - dA @ X)


@jax.custom_jvp
def frobenius(x):
    """Frobenius norm over the last two axes, scaled so that no square over- or underflows; its derivative at 0 is 0."""
    largest = jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True, initial=0)
    scale = jnp.where(largest > 0, largest, 1)
    return scale[..., 0, 0] * jnp.sqrt(jnp.sum(jnp.abs(x / scale) ** 2, axis=(-2, -1)))


@frobenius.defjvp
def _(primals, tangents):
    (x,), (dx,) = primals, tangents
    norm = frobenius(x)
    direction = x * _inverse(norm)[..., None, None]
    return norm, jnp.sum((jnp.conj(direction) * dx).real, axis=(-2, -1))


@jax.custom_jvp
def _once(A):
    """The identity, for what has a derivative that is right but has itself none."""
    return A


@_once.defjvp
def _(primals, tangents):
    raise NotImplementedError("a second derivative of norms and singular values of low-rank matrices is not supported.")


def _adjoint(A):
    return jnp.conj(A.mT)


def _outside(Q, X):
    """What of X's columns is not in the span of Q's."""
    return X - Q @ (_adjoint(Q) @ X)


def _diagonal(A):
    """A with zeros off its diagonal."""
    return A * jnp.eye(A.shape[-1], dtype=A.dtype)


def _identity_like(A):
    return jnp.broadcast_to(jnp.eye(A.shape[-1], dtype=A.dtype), A.shape)


def _inverse(x):
    """1 / x, and 0 where x is."""
    return jnp.where(x == 0, 0, 1 / jnp.where(x == 0, 1, x))


def _inverse_of_triangle(R):
    """R⁻¹, without the columns that depend on earlier ones."""
    zero = jnp.diagonal(R, axis1=-2, axis2=-1) == 0
    kept = (~zero).astype(R.dtype)
    eye = _identity_like(R)
    return solve(R + eye * (1 - kept)[..., None, :], eye) * kept[..., None, :] * kept[..., :, None]
