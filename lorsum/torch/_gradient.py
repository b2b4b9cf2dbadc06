"""The gradient with respect to B·A of one adapter, as it is accumulated: pairs of S and X, or their dense sum."""

from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv1d_weight, conv2d_weight

from lorsum.lowrank import LowRank
from lorsum.torch._arrays import half_to_single

Form: TypeAlias = Literal["auto", "pairs", "dense"]  # what is kept of a gradient
Missing: TypeAlias = Literal["skip", "error"]  # what a step does about an adapter without one
MANY = 128  # rows, from which a pass over S for its zeros costs next to nothing


class LinearView(NamedTuple):
    """How the calls of a linear pair give S and X: one row a token."""

    shape: tuple[int, int]

    def pair(self, S: Tensor, X: Tensor) -> tuple[Tensor, Tensor]:
        """S and X as matrices, shapes (N, d_out) and (N, d_in)."""
        if S.ndim == 2 and X.ndim == 2:
            return S, X
        return S.reshape(-1, self.shape[0]), X.reshape(-1, self.shape[1])

    def product(self, S: Tensor, X: Tensor) -> Tensor:
        """SᵀX, shape (d_out, d_in)."""
        S, X = self.pair(S, X)
        return half_to_single(S).T @ half_to_single(X)


class ConvolutionView(NamedTuple):
    """How the calls of a convolutional pair give S and X: one row an output position, of which X holds the patch."""

    shape: tuple[int, int]
    conv: Any

    def pair(self, S: Tensor, X: Tensor) -> tuple[Tensor, Tensor]:
        """S and X as matrices, shapes (N, d_out) and (N, d_in · kernel)."""
        S, X, padding = self._batched(S, X)
        dims = len(self.conv.kernel_size)
        missing = (1,) * (2 - dims)  # F.unfold knows images only: a sequence is one of height 1
        X = F.unfold(
            X.reshape(*X.shape[:2], *missing, *X.shape[2:]),
            missing + self.conv.kernel_size,
            missing + self.conv.dilation,
            (0,) * len(missing) + padding,
            missing + self.conv.stride,
        )
        return S.flatten(2).mT.reshape(-1, self.shape[0]), X.mT.reshape(-1, self.shape[1])

    def product(self, S: Tensor, X: Tensor) -> Tensor:
        """SᵀX, shape (d_out, d_in · kernel): the weight gradient of the convolution that B·A is; no patch is copied."""
        S, X, padding = self._batched(S, X)
        conv, size = self.conv, (self.shape[0], X.shape[1], *self.conv.kernel_size)
        weight_gradient = conv1d_weight if len(conv.kernel_size) == 1 else conv2d_weight
        G = weight_gradient(half_to_single(X), size, half_to_single(S), conv.stride, padding, conv.dilation)
        return G.reshape(self.shape)

    def _batched(self, S: Tensor, X: Tensor) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """Both with a batch dimension, X padded as far as the weight gradient does not know how to, and the padding."""
        conv, dims = self.conv, len(self.conv.kernel_size)
        if X.ndim == dims + 1:
            S, X = S[None], X[None]
        if conv.padding_mode == "zeros" and not isinstance(conv.padding, str):
            return S, X, conv.padding
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        return S, F.pad(X, conv._reversed_padding_repeated_twice, mode=mode), (0,) * dims


class Gradient:
    """A gradient Σ SᵀX that is added to call by call.

    N rows of S and X are N (m + n) numbers, their sum m n: where the pairs would take more, and ``form`` is "auto",
    the sum is kept. Rows of zeros in S, as those of padding tokens are, are left out on the CPU, but where ``form`` is
    "rows", which is "pairs" otherwise.
    """

    def __init__(self, shape: tuple[int, int], form: str = "auto"):
        self.shape, self.form = shape, form
        self.pairs: list[tuple[Tensor, Tensor]] = []
        self.dense: Any = None
        self.noise: Any = 0.0  # a bound of the rounding errors of the dense sum
        self.is_mean = False  # over the processes, at least what is older

    def __bool__(self) -> bool:
        return bool(self.pairs) or self.dense is not None

    @property
    def rows(self) -> int:
        return sum(len(S) for S, _ in self.pairs)

    @property
    def nbytes(self) -> int:
        """Bytes that are held, a storage that several tensors share being counted once."""
        held = [self.dense] if self.dense is not None else [x for pair in self.pairs for x in pair]
        storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in held}
        return sum(storages.values())

    def add(self, view: Any, S: Tensor, X: Tensor, bounded: bool = True) -> None:
        """Add SᵀX of one call.

        S and X are copied where they are kept: either may be a buffer that is written to again before the step, of a
        pipeline stage, a data loader, compiled code or another's hook, and no tensor tells whose memory it has.

        Rounding errors are not added to their bound where it is not asked for: that takes two passes.
        """
        given = S.data_ptr(), X.data_ptr()
        if isinstance(view, LinearView) and self.form != "rows":
            S, X = _without_zeros(*view.pair(S, X))
        if self._stays_paired(S.numel() // self.shape[0]):
            S, X = view.pair(S, X)
            kept = S.clone() if S.data_ptr() in given else S, X.clone() if X.data_ptr() in given else X
            self.pairs.append(kept)
        else:
            self._add_dense(view.product(S, X), _rounding(S, X) if bounded else 0.0)

    def merge(self, other: "Gradient") -> None:
        """Add another gradient, which is used up."""
        if other.dense is not None:
            self._add_dense(other.dense, other.noise)
        elif self._stays_paired(other.rows):
            self.pairs += other.pairs
        else:
            for pair in other.pairs:
                self._add_dense(LinearView(self.shape).product(*pair), _rounding(*pair))
        other.clear()

    def scale(self, c: float) -> None:
        if c == 1:
            return
        self.pairs = [(S * c, X) for S, X in self.pairs]
        self.dense = None if self.dense is None else self.dense * c
        self.noise = self.noise * abs(c)

    def clear(self) -> None:
        self.pairs, self.dense = [], None
        self.noise, self.is_mean = 0.0, False

    def times(self, c: float) -> Any:
        """c Σ SᵀX in the precision to compute in: a LowRank(Sᵀ, Xᵀ), or a dense tensor."""
        if self.dense is not None:
            return self.dense if c == 1 else c * self.dense
        S, X = (half_to_single(x[0] if len(x) == 1 else torch.cat(x)) for x in zip(*self.pairs, strict=True))
        return LowRank._of((S if c == 1 else c * S).T, X.T)

    def rounding(self) -> Any:
        """A bound of how much rounding may have changed the sum in autograd's arithmetic: Σ ε ‖S‖ ‖X‖."""
        return self.noise + sum(_rounding(*pair) for pair in self.pairs)

    def _stays_paired(self, rows: int) -> bool:
        if self.form != "auto" or self.dense is not None:
            return self.form in ("pairs", "rows")
        m, n = self.shape
        return (self.rows + rows) * (m + n) <= m * n

    def _add_dense(self, G: Tensor, noise: Any) -> None:
        for pair in self.pairs:
            G += LinearView(self.shape).product(*pair)
            noise = noise + _rounding(*pair)
        self.pairs = []
        self.noise = self.noise + noise
        self.dense = G if self.dense is None else self.dense.add_(G)


def _without_zeros(S: Tensor, X: Tensor) -> tuple[Tensor, Tensor]:
    """The rows in which S is not zero, where that saves much; accelerators are not asked, which would have to wait."""
    if len(S) < MANY or not S.is_cpu:
        return S, X
    sizes = torch.linalg.vector_norm(S, dim=1, dtype=torch.float32 if S.dtype.itemsize < 4 else None)
    (kept,) = torch.nonzero(sizes, as_tuple=True)
    # Squares below the smallest number are zero too: next to a row of this size, such a row is below its rounding error
    if len(kept) > 0.75 * len(S) or not float(sizes.max()) > 1e-12:
        return S, X
    return S[kept], X[kept]


def _rounding(S: Tensor, X: Tensor) -> Any:
    return max(torch.finfo(S.dtype).eps, torch.finfo(X.dtype).eps) * _norm(S) * _norm(X)


def _norm(x: Tensor) -> Any:
    """Frobenius norm, in at least single precision: a number, or on an accelerator a tensor, so that nothing waits."""
    size = torch.linalg.vector_norm(half_to_single(x))
    return size.item() if x.is_cpu else size


def zero_gradient(adapter: Any, rows: int = 1) -> LowRank:
    """The gradient of an adapter that nothing has passed: rows of zeros in S and X."""
    m, n = adapter.shape
    B = half_to_single(adapter.B.detach())
    return LowRank._of(B.new_zeros(m, rows), B.new_zeros(n, rows))
