"""Names for the types in the signatures of :mod:`lorsum`."""

from typing import Any, Literal, TypeAlias

import numpy as np

__all__ = ["RNG", "Array", "Factor", "Scalar"]

Array: TypeAlias = Any
"""An array of NumPy, PyTorch, JAX or any library that speaks the array API."""

Scalar: TypeAlias = Any
"""A number: Python's, NumPy's, or an array without dimensions, such as a learning rate that JAX traces."""

RNG: TypeAlias = int | np.random.Generator | None
"""A seed, a generator, or None for fresh entropy (SPEC 7)."""

Factor: TypeAlias = Literal["U", "V"]
"""The name of one of the two factors of a low-rank matrix U Vᵀ."""
