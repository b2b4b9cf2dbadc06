"""Rules that precondition a factor's gradient with the other factor's Gram matrix: ScaledGD, Riemannian LoRA."""

from dataclasses import dataclass
from typing import Any

from lorsum.alternating import least_squares_factor
from lorsum.lowrank import LowRank
from lorsum.optim._options import is_used
from lorsum.optim.factors import SGD, AdamW, checked_gradient, leaves
from lorsum.optim.rule import Reads
from lorsum.typing import Array, Scalar


class _Preconditioned:
    """What both rules do with the gradients of the factors, and with decay."""

    reg: Scalar
    weight_decay: Scalar

    def reads(self, rank: int) -> Reads:
        """Of G a product with a basis of each factor's columns."""
        return Reads("products", rank)

    def arrays_and_gradients(self, W: Any, G: Any, lr: Scalar) -> tuple[list[Array], list[Array]]:
        """The factors after decay, and G V (VᵀV + λI)⁻¹ and Gᵀ U (UᵀU + λI)⁻¹: half-steps of LoRSum on G itself.

        A dense parameter is trained as without preconditioning.
        """
        if not isinstance(W, LowRank):
            return super().arrays_and_gradients(W, G, lr)  # type: ignore[misc]
        G, (U, V), reg = checked_gradient(W, G), leaves(W), lr * self.reg
        gradients = [least_squares_factor(G, V, reg=reg), least_squares_factor(G.T, U, reg=reg)]
        if is_used(self.weight_decay):  # both factors take their part of it, and U a negative one's sign
            kept = 1 - lr * self.weight_decay
            root = abs(kept) ** 0.5
            U, V = (2 * (kept >= 0) - 1) * root * U, root * V
        return [U, V], gradients


@dataclass(frozen=True, kw_only=True)
class PreconditionedSGD(_Preconditioned, SGD):
    """Gradient descent on the factors with preconditioned gradients and, as is usual, naive momentum of these.

    ``U ← U − η G V (VᵀV + λI)⁻¹`` and the same for V [1]_ [2]_; with λ → 0 and no momentum this is one simultaneous
    iteration of LoRSum on W − ηG (section 3 of [3]_).

    Parameters
    ----------
    lr, momentum, maximize
        As for :class:`SGD`.
    weight_decay : float
        Decoupled, of the product: U Vᵀ ← (1 − η · weight_decay) U Vᵀ as part of the step. Of a dense parameter as for
        :class:`SGD`.
    reg : float
        λ, before it is multiplied by the learning rate.

    References
    ----------
    .. [1] T. Tong, C. Ma, Y. Chi, Accelerating ill-conditioned low-rank matrix estimation via scaled gradient descent,
       JMLR 22(150), 2021.
    .. [2] F. Zhang, M. Pilanci, Riemannian preconditioned LoRA for fine-tuning foundation models, arXiv 2402.02347.
    .. [3] A. J. Almansoori et al., Faster Than SVD, Smarter Than SGD: The OPLoRA Alternating Update, arXiv 2509.19977.

    Examples
    --------
    >>> import numpy as np
    >>> W = LowRank(np.array([[3.0], [0.0]]), np.array([[2.0], [0.0]]))
    >>> rule = PreconditionedSGD(lr=0.1, reg=0.0)
    >>> rule.step(W, np.eye(2), rule.init(W))[0].U.ravel()  # 3 - 0.1 / 2
    array([2.95, 0.  ])
    """

    reg: Scalar = 1e-3


@dataclass(frozen=True, kw_only=True)
class PreconditionedAdamW(_Preconditioned, AdamW):
    """AdamW fed with the preconditioned gradients of the factors (Zhang and Pilanci's scaled AdamW).

    Parameters
    ----------
    lr, betas, eps, maximize
        As for :class:`AdamW`.
    weight_decay, reg
        As for :class:`PreconditionedSGD`, the decay of a dense parameter as for :class:`AdamW`.

    Examples
    --------
    >>> import numpy as np
    >>> W = LowRank(np.array([[3.0], [0.0]]), np.array([[2.0], [0.0]]))
    >>> rule = PreconditionedAdamW(lr=0.1, weight_decay=0.0)
    >>> rule.step(W, np.eye(2), rule.init(W))[0].U.ravel().round(4)
    array([2.9, 0. ])
    """

    reg: Scalar = 1e-3
