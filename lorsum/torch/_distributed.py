"""The mean of a gradient over processes, by whichever of three ways moves the fewest bytes.

The rows of S and X can be gathered, their sum SᵀX all-reduced, or nothing but the thin products G V and Gᵀ U that a
rule asks for. Every process ends up with the same bits.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from lorsum.lowrank import LowRank
from lorsum.optim import Rule, reads
from lorsum.torch._adapters import Adapter
from lorsum.torch._arrays import half_to_single, to_arrays
from lorsum.torch._gradient import Gradient, Missing, zero_gradient

Way: TypeAlias = Literal["rows", "sum", "products"]


class Traffic(NamedTuple):
    """What a step moved between the processes for one adapter: S and X, SᵀX, or thin products."""

    what: Way
    nbytes: int  # that each process sent


def processes(group: Any = None) -> int:
    """Number of processes that gradients are averaged over."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


class MeanGradients:
    """The gradients of all adapters, which come in the same order in every process, as means over the processes.

    That ``.grad`` is the mean of what was captured, and the seeds of the random numbers the same, is checked.
    """

    unchecked = False  # c would show if they were not what .grad comes from

    def __init__(self, captures: list[Any], group: Any = None, seed: int = 0, missing: Missing = "skip"):
        self.group, self.traffic = group, dict[str, Traffic]()
        device = captures[0].adapter.B.device
        told = torch.tensor([_report(capture, seed) for capture in captures], dtype=torch.float64, device=device)
        everyone = [torch.empty_like(told) for _ in range(processes(group))]
        dist.all_gather(everyone, told, group=group)
        heard = torch.stack(everyone).cpu()
        if len(set(heard[heard[..., 0] > 0][:, 2].tolist())) > 1:
            raise RuntimeError("`rng` is not the same in all processes; pass one integer.")
        for i, capture in enumerate(captures):
            _require_everywhere(capture.adapter, heard[:, i, 0].tolist())
        self.rows, self.factors = dict[Tensor, list[int]](), dict[Tensor, float]()
        for i, capture in enumerate(captures):
            if not heard[0, i, 0]:  # nor in any other process
                capture.has_gradient(missing)
                continue
            self.rows[capture.adapter.B] = heard[:, i, 1].int().tolist()
            self.factors[capture.adapter.B] = _common_factor(capture.adapter, *heard[:, i, 3:].mean(dim=0).tolist())

    def gradient(self, capture: Any, rule: Rule) -> Any:
        """c G as the rule takes it."""
        adapter, c = capture.adapter, self.factors[capture.adapter.B]
        local = capture.gradient.times(c) if capture.gradient else zero_gradient(adapter, rows=0)
        rows, count = self.rows[adapter.B], processes(self.group)
        if not any(rows):  # .grad is zero, by hand
            return to_arrays(zero_gradient(adapter))
        way = cheapest(rule, adapter, rows, count)
        self.traffic[adapter.name] = Traffic(way, 0)
        if way == "rows":
            self._moved(adapter.name, (count - 1) * max(rows) * sum(adapter.shape) * local.U.itemsize)
            return to_arrays(gathered(local, rows, self.group))
        if way == "sum":
            local = local.to_dense() if isinstance(local, LowRank) else local
            return to_arrays(self._mean(local.contiguous(), adapter.name))
        return _Products(to_arrays(local), adapter.shape, lambda product: self._mean(product, adapter.name))

    def _mean(self, x: Tensor, name: str) -> Tensor:
        """The mean of a tensor over the processes, which has the same bits in each of them."""
        count = processes(self.group)
        dist.all_reduce(x, group=self.group)
        self._moved(name, 2 * (count - 1) / count * x.numel() * x.itemsize)
        return x / count

    def _moved(self, name: str, nbytes: float) -> None:
        way, before = self.traffic[name]
        self.traffic[name] = Traffic(way, before + round(nbytes))


def gathered(local: LowRank, rows: Sequence[int], group: Any = None) -> LowRank:
    """LowRank(Sᵀ / P, Xᵀ) with the rows of all P processes, of which ``local`` has this one's."""
    (m, _), (n, _) = local.U.shape, local.V.shape
    mine = half_to_single(torch.zeros(max(rows), m + n, dtype=local.U.dtype, device=local.U.device))
    mine[: local.rank] = torch.cat([local.U.T, local.V.T], dim=1)
    everyone = [torch.empty_like(mine) for _ in rows]
    dist.all_gather(everyone, mine, group=group)
    stacked = torch.cat([x[:count] for x, count in zip(everyone, rows, strict=True)])
    return LowRank._of(stacked[:, :m].T / len(rows), stacked[:, m:].T)


def local_factor(capture: Any) -> float:
    """c where the captured gradient is the mean over the processes already."""
    with_A, with_B = _projections(capture)
    return _common_factor(capture.adapter, with_A, with_B, float(capture.gradient.rounding()))


def cheapest(rule: Rule, adapter: Adapter, rows: Sequence[int], count: int) -> Way:
    """The way that moves the fewest bytes: "rows", "sum" or "products".

    A gather makes each process send its rows to P − 1 others; a reduction of d numbers 2 d (P − 1) / P of them.
    """
    m, n = adapter.shape
    reducing = 2 * (count - 1) / count
    what, columns = reads(rule, adapter.rank)
    if what == "rows":
        return "rows"
    numbers: dict[Way, float] = {"sum": reducing * m * n}
    if min(rows) >= 0:
        numbers["rows"] = (count - 1) * max(rows) * (m + n)
    if what in ("products", "factors") and adapter.B.is_cpu:  # operators in lorsum's sums are NumPy's
        numbers["products"] = reducing * (adapter.rank if what == "factors" else columns) * (m + n)
    return min(numbers, key=lambda way: numbers[way])


class _Products:
    """The mean of local gradients, known by its products with thin matrices: a ``LinearOperator`` to lorsum."""

    def __init__(self, local: Any, shape: tuple[int, int], mean: Callable[[Tensor], Tensor]):
        self.local, self.shape, self.mean = local, shape, mean
        self.dtype = local.dtype

    @property
    def T(self) -> "_Products":
        return _Products(self.local.T, self.shape[::-1], self.mean)

    def matmat(self, X: np.ndarray) -> np.ndarray:
        """The mean of G X."""
        return self.mean(torch.from_numpy(np.ascontiguousarray(self.local @ X))).numpy()

    def rmatmat(self, X: np.ndarray) -> np.ndarray:
        """The mean of Gᵀ X."""
        return self.T.matmat(X)

    __matmul__ = matmat


def _report(capture: Any, seed: int) -> list[float]:
    """What all processes hear of an adapter.

    Whether it has ``.grad``; the rows of its gradient, or -1 if it is dense; the seed; ⟨A.grad, BᵀG⟩; ⟨B.grad, G Aᵀ⟩;
    and a bound of its rounding errors.
    """
    if not capture.has_gradient():
        return [0.0] * 6
    gradient: Gradient = capture.gradient
    rows = -1 if gradient.dense is not None else gradient.rows
    return [1.0, rows, seed, *_projections(capture), float(gradient.rounding())]


def _require_everywhere(adapter: Adapter, there: Sequence[float]) -> None:
    """An error, in all processes alike, unless ``.grad`` is there in each or in none."""
    if len(set(there)) > 1:
        raise RuntimeError(
            f"`{adapter.name}` has .grad in the processes {[rank for rank, it in enumerate(there) if it]} but not in "
            f"{[rank for rank, it in enumerate(there) if not it]}: it is not averaged. Wrap the model by "
            "DistributedDataParallel, with find_unused_parameters=True where not all of it is used."
        )


def _projections(capture: Any) -> tuple[float, float]:
    """⟨A.grad, BᵀG⟩ and ⟨B.grad, G Aᵀ⟩ with this process's G: linear in it, so that their mean is that of the mean."""
    adapter = capture.adapter
    if not capture.gradient:
        return 0.0, 0.0
    W = capture.weights_of_grad()
    G, (U, V) = capture.gradient.times(1.0), map(half_to_single, adapter.matrix() if W is None else W)
    return _inner(_grad_as_matrix(adapter.A), (G.T @ U).T), _inner(_grad_as_matrix(adapter.B), G @ V)


def _grad_as_matrix(p: Tensor) -> Tensor:
    assert p.grad is not None
    return half_to_single(p.grad).reshape(p.shape[0], -1)


def _inner(x: Tensor, y: Tensor) -> float:
    """⟨x, y⟩ in double precision: products of small gradients leave the range of single precision."""
    return float(torch.sum(x.double() * y.double()))


def _common_factor(adapter: Adapter, with_A: float, with_B: float, rounding: float) -> float:
    """c in A.grad = c BᵀG and B.grad = c G Aᵀ: ‖A.grad‖² / ⟨A.grad, BᵀG⟩, and the same for B.

    ``rounding`` bounds the rounding errors of G, not of c G.
    """
    squares = [_inner(x, x) for x in map(_grad_as_matrix, (adapter.A, adapter.B))]
    if not all(map(math.isfinite, squares)):
        raise RuntimeError(f"`{adapter.name}`: its gradient is not finite.")
    half = any(p.dtype.itemsize < 4 for p in (adapter.A, adapter.B))
    factors, slack = [], 1e-2 if half else 1e-3
    for square, inner, other in zip(squares, (with_A, with_B), (adapter.B, adapter.A), strict=True):
        if square > 0:
            factors.append(square / inner if inner else math.inf)
            if inner:
                slack = max(slack, 100 * rounding * float(other.detach().float().norm()) * square**0.5 / abs(inner))
    if not factors:
        return 1.0
    least, largest = min(factors), max(factors)
    if not (least * largest > 0 and largest - least <= slack * min(abs(least), abs(largest))):
        raise RuntimeError(
            f"`{adapter.name}`: its .grad is no multiple of the mean over the processes of what was captured "
            f"({', '.join(f'{c:.4g}' for c in factors)}). Is the model wrapped by DistributedDataParallel, was the "
            "last backward pass outside of no_sync, and were all gradients multiplied by one factor?"
        )
    c = sum(factors) / len(factors)
    return 1.0 if abs(c - 1) <= min(slack, 1e-2) / 10 else c
