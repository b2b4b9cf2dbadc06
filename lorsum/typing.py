"""Names for the types in the signatures of :mod:`lorsum`.

Arrays belong to any library that speaks the array API, and no type is common to all of them, so the names below that
stand for arrays are ``Any`` to a type checker: they tell the reader what is meant.
"""

from typing import Any, Literal, TypeAlias

import numpy as np

__all__ = ["RNG", "Acceleration", "Array", "DType", "Factor", "Matrix", "Scalar"]

Array: TypeAlias = Any
"""An array of NumPy, PyTorch, JAX or any library that speaks the array API."""

Matrix: TypeAlias = Any
"""A matrix: a LowRank, a LowRankSum, an :data:`Array` of at least two dimensions, a SciPy operator or sparse matrix."""

Scalar: TypeAlias = Any
"""A number: Python's, NumPy's, or an array without dimensions, such as a learning rate that JAX traces."""

DType: TypeAlias = Any
"""The dtype of an :data:`Array`, in the form of its library."""

RNG: TypeAlias = int | np.random.Generator | None
"""A seed, a generator, or None for fresh entropy (SPEC 7). The default is the seed 0 everywhere: runs repeat."""

Factor: TypeAlias = Literal["U", "V"]
"""The name of one of the two factors of a low-rank matrix U Vᵀ."""

Acceleration: TypeAlias = Literal[None, "krylov"]
"""What ``accelerate`` may be: None, or ``"krylov"``, the best approximation in the span of all iterates."""
