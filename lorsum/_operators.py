"""What a sum needs of a SciPy operator or sparse matrix: its dtype, and products that are what they claim."""

import numpy as np

from lorsum._checks import NUMBERS, is_numeric, refuse_masked


def is_operator(x):
    """True for SciPy's ``LinearOperator`` and what behaves like it."""
    return hasattr(x, "matmat") and hasattr(x, "rmatmat") and hasattr(x, "shape")


def is_sparse(x):
    """True for SciPy's sparse arrays and matrices."""
    return type(x).__module__.startswith("scipy.sparse") and hasattr(x, "tocsr")


def as_operator(x, name):
    """An operator, or a sparse matrix as one; an error unless it is of real or complex numbers."""
    if is_sparse(x):
        from scipy.sparse.linalg import aslinearoperator

        x = aslinearoperator(x)
    dtype = getattr(x, "dtype", None)
    if dtype is not None:
        dtype = np.dtype(dtype)
        if not is_numeric(dtype):
            raise TypeError(f"`{name}` is an operator of dtype {dtype}; {NUMBERS}: convert what it is made of.")
    return x


def floating_dtype(A):
    """What an operator's dtype contributes to that of a sum, or None.

    Integers and booleans count as they do in NumPy's promotion with floats. Without a dtype, SciPy infers one from a
    product with int8, so that int8 says no more than that the operator keeps what it is given.
    """
    dtype = getattr(A, "dtype", None)
    return None if dtype is None else np.dtype(dtype).newbyteorder("=")


def operator_times(A, X):
    """A X as an array of its right shape, in floating point where X is."""
    if 0 in X.shape:  # of which SciPy's operators make no product
        return np.zeros((*X.shape[:-2], A.shape[0], X.shape[-1]), X.dtype)
    try:
        Y = A.matmat(X) if X.ndim == 2 else _batch(A, X)
    except Exception as error:
        note = f"raised by the operator {A!r} in a product with an array of shape {X.shape}"
        transposed = getattr(A, "A", None)  # what SciPy's transposes are made of
        if is_operator(transposed) and _lacks_adjoint(transposed):
            missing = ValueError(f"the operator {transposed!r} has no `rmatvec`, or one that fails: Aᴴ x is needed.")
            missing.add_note(note)
            raise missing from error
        error.add_note(note)
        raise
    refuse_masked(Y, "product of an operator")
    Y, expected = np.asarray(Y), (*X.shape[:-2], A.shape[0], X.shape[-1])
    if Y.shape != expected:
        raise _noted(ValueError(f"the operator {A!r} gives a product of shape {Y.shape}; {expected} is right."))
    if not is_numeric(Y.dtype):
        raise _noted(TypeError(f"the operator {A!r} gives a product of dtype {Y.dtype}; {NUMBERS}."))
    dtype = floating_dtype(A)
    if Y.dtype.kind == "c" and X.dtype.kind != "c" and (dtype is None or dtype.kind != "c"):
        message = f"the operator {A!r} of dtype {dtype} gives complex products: make it `dtype=complex`."
        raise _noted(ValueError(message))
    return Y.astype(np.result_type(Y.dtype, X.dtype), copy=False)


def _batch(A, X):
    return np.stack([A.matmat(x) for x in X.reshape(-1, *X.shape[-2:])]).reshape(*X.shape[:-2], -1, X.shape[-1])


def dense_of(A, dtype):
    """An operator as an array, by products with the smaller identity: in ``dtype``, whatever its own is."""
    m, n = A.shape
    return operator_times(A, np.eye(n, dtype=dtype)) if n <= m else operator_times(A.T, np.eye(m, dtype=dtype)).T


def check_adjoints(name, operators):
    """An error if one of the operators lacks the products with its adjoint."""
    for A in operators:
        if _lacks_adjoint(A):
            raise ValueError(f"`{name}` has an operator without `rmatvec`, or one that fails: Aᴴ x is needed.")


def _lacks_adjoint(A):
    try:
        A.rmatmat(np.zeros((A.shape[0], 1)))
    except (NotImplementedError, TypeError):  # SciPy calls the None that it was given
        return True
    return False


def _noted(error):
    """The error with a note, by which it is known to be an operator's."""
    error.add_note("Products with an operator are checked.")
    return error
