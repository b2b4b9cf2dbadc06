"""What theory says of LoRSum before it runs, and what it certifies afterwards.

W is the target with singular values σ₁ ≥ σ₂ ≥ …, and W_r its truncated SVD. An iteration with λ = 0 is one of subspace
iteration [1]_: with ``first="U"``, after K of them U spans W(WᵀW)ᴷ⁻¹V₀, V spans (WᵀW)ᴷV₀, and the iterate is X = P W, P
the projector on U's columns. For ``first="V"`` left and right change places.

Before a run: :func:`contraction_rate`, :func:`angle_bounds`, :func:`singular_value_bounds`, :func:`excess_bound`,
:func:`iterations_needed` where the singular values are known, :func:`gap_free_bound` where they are not,
:func:`random_start_angle`; :func:`reg_singular_values` for λ > 0. Afterwards: :func:`a_posteriori_bounds`.

The bounds that come before the run depend on the start only through θ₀, the largest principal angle between V₀'s
columns and the dominant right singular subspace: ``start_angle``, in radians. An iteration with more than r columns,
truncated to rank r at the end, may take the dominant subspace of any dimension q from r up to their number:
``dominant``. Where a bound is by the tangent, one of θ₀ = π/2 says nothing. All hold in exact arithmetic; rounding adds
its own. An argument that is out of range is a ValueError.

References
----------
.. [1] A. Dax, The equivalence between orthogonal iterations and alternating least squares, Advances in Linear Algebra &
   Matrix Theory 10(2), 2020.
"""

from lorsum.theory.a_posteriori import APosterioriBounds, a_posteriori_bounds
from lorsum.theory.gap_free import gap_free_bound, random_start_angle
from lorsum.theory.proximal import reg_singular_values
from lorsum.theory.subspace_iteration import (
    AngleBounds,
    angle_bounds,
    contraction_rate,
    excess_bound,
    iterations_needed,
    singular_value_bounds,
)

__all__ = [
    "APosterioriBounds",
    "AngleBounds",
    "a_posteriori_bounds",
    "angle_bounds",
    "contraction_rate",
    "excess_bound",
    "gap_free_bound",
    "iterations_needed",
    "random_start_angle",
    "reg_singular_values",
    "singular_value_bounds",
]
