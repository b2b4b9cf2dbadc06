"""What :func:`lorsum.lorsum` is asked: every check of its arguments, and simpler problems with the same solution."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from lorsum._arrays import as_float, computing_dtype, is_complex, is_traced, namespace_of, normal, scale_of, zeros_like
from lorsum._checks import as_count, as_number, as_rank, is_scalar
from lorsum._linear import check_addable
from lorsum._sums import require_finite_coefficients, stacked
from lorsum.lowrank import LowRank, LowRankSum, as_sum
from lorsum.metrics import whitened
from lorsum.svd import truncated_svd
from lorsum.typing import RNG, Acceleration, Factor, Scalar

Method: TypeAlias = Literal["auto", "direct", "coefficients"]
Solver: TypeAlias = Literal["auto", "qr", "gram"]
Gauge: TypeAlias = Literal["paper", "balanced"]

_CHOICES = {
    "first": get_args(Factor),
    "method": get_args(Method),
    "solver": get_args(Solver),
    "gauge": get_args(Gauge),
    "accelerate": get_args(Acceleration),
}


class Problem(NamedTuple):
    """What is asked of :func:`lorsum.lorsum`; see there for the meaning, and :func:`checked`.

    Of metrics the form alone is checked where they are used, in :func:`lorsum.metrics.root_of`.
    """

    target: Any  # a LowRankSum, once checked
    init: Any = None  # a LowRank, once checked
    iters: int = 1
    reg: Scalar = 0.0  # a float, once checked, but where λ is traced or wants a gradient
    oversample: int = 0
    first: Factor = "U"
    simultaneous: bool = False
    metric: Any = None
    method: Method = "auto"
    solver: Solver = "auto"
    gauge: Gauge = "paper"
    accelerate: Acceleration = None
    callback: Callable[[Any], object] | None = None
    rng: RNG = 0


def checked(problem: Problem) -> Problem:
    """The problem after every check of its arguments; the errors are those of :func:`lorsum.lorsum`."""
    target, init, iters, reg, oversample, *options = problem
    first, simultaneous, _, method, solver, gauge, accelerate, callback, _ = options
    target = as_sum(target, "target")
    if init is None:
        init = target.terms[0]
        if not isinstance(init, LowRank):
            raise ValueError("`init` is None and the first term of `target` is no LowRank: pass `init` to start from.")
    else:
        check_init(init, target)
    require_finite_coefficients("target", target)
    reg = as_reg(reg)
    iters, oversample = as_count(iters, "iters", least=0), as_count(oversample, "oversample", least=0)
    as_rank(init.rank, init.shape, "init.rank")
    if oversample:
        as_rank(init.rank + oversample, init.shape, "init.rank + oversample")
    if callback is not None and not callable(callback):
        raise TypeError(f"`callback` is a {type(callback).__name__}; a function of an Iterate is needed.")
    check_choices(first=first, method=method, solver=solver, gauge=gauge, accelerate=accelerate)
    if accelerate and (simultaneous or not is_zero(reg)):
        raise ValueError("`accelerate` is 'krylov', which needs `reg` = 0 and `simultaneous` = False.")
    if accelerate and solver == "gram":
        raise ValueError("`accelerate` is 'krylov', which orthogonalises, but `solver` is 'gram': use 'qr' or 'auto'.")
    if method == "coefficients" and not target.is_factored:
        raise ValueError("`method` is 'coefficients', but a term of `target` is not a LowRank: use 'direct'.")
    return Problem(target, init, iters, reg, oversample, *options)


def check_init(init: Any, target: LowRankSum) -> None:
    """An error unless a start fits its target."""
    if not isinstance(init, LowRank):
        raise TypeError(f"`init` is a {type(init).__name__}; a LowRank is needed.")
    if init.shape != target.shape:
        raise ValueError(f"`init` has shape {init.shape} and `target` {target.shape}: they must be equal.")
    check_addable(target, as_sum(init), names=("target", "init"))


def as_reg(reg: Scalar) -> Scalar:
    """λ as a float, or as it is where it is traced or wants a gradient."""
    if type(reg) is float and 0 <= reg < float("inf"):
        return reg  # the short way, for most
    if not is_scalar(reg):
        raise TypeError(f"`reg` is a {type(reg).__name__}; a number is needed.")
    if is_traced(reg):
        return reg
    given, reg = reg, as_number(reg, "reg")
    if is_complex(reg):
        raise TypeError(f"`reg` is {reg}; a real number is needed.")
    reg = as_float(reg)
    if not 0 <= reg < float("inf"):
        raise ValueError(f"`reg` is {reg}; it must be finite and at least 0.")
    return given if reg and getattr(given, "requires_grad", False) else reg


def is_zero(reg: Scalar) -> bool:
    """True for λ = 0. One that is traced counts as positive."""
    return type(reg) is float and reg == 0


def check_choices(**chosen: object) -> None:
    """An error unless each option is one of its choices."""
    for name, value in chosen.items():
        choices = _CHOICES[name]
        if (value is not None and not isinstance(value, str)) or value not in choices:
            raise ValueError(f"`{name}` is {value!r}; it must be one of {', '.join(map(repr, choices))}.")


def result_dtype(target: LowRankSum, init: LowRank) -> Any:
    """The target's dtype, of complex numbers also where the start alone is complex."""
    dtype, start = target.dtype, init.dtype
    if start == dtype:
        return dtype
    xp = namespace_of(init.U)
    if xp.isdtype(start, "complex floating") and not xp.isdtype(dtype, "complex floating"):
        return xp.result_type(dtype, xp.complex64)
    return dtype


def all_terms(problems: Sequence[Problem]) -> Sequence[Any]:
    """The starts and the terms of all problems, those that they have in common once."""
    if len(problems) == 1:
        init, terms = problems[0].init, problems[0].target.terms
        return terms if init is terms[0] else (init, *terms)
    return [*{id(A): A for problem in problems for A in (problem.init, *problem.target.terms)}.values()]


# --- simpler problems ---


def simplified(problem: Problem) -> tuple[Problem, Callable[[LowRank], LowRank]]:
    """A problem without metric, in one dtype, of the rank that is iterated at; and the way back from its iterates.

    It is the problem itself where nothing has to be done. The way back ends with the gauge that was asked for, which
    the kernels can give too.
    """
    target, init = problem.target, problem.init
    dtype = result_dtype(target, init)
    computing = computing_dtype(namespace_of(init.U), dtype)
    W, X0 = target.astype(computing), init if init.dtype == computing else init.astype(computing)
    if W is target and X0 is init and problem.metric is None and not problem.oversample:
        return problem, LowRank.balanced if problem.gauge == "balanced" else _same
    if init is target.terms[0]:
        X0 = W.terms[0]  # which is read once then
    undo: list[Callable[[LowRank], LowRank]] = []
    if problem.metric is not None:
        W, X0, unwhitened = whitened(W, X0, problem.metric)
        undo.insert(0, unwhitened)
    if problem.oversample:
        X0 = _with_more_columns(W, X0, problem.oversample, problem.first, problem.rng)
        undo.insert(0, lambda X: truncated_svd(X, init.rank).to_lowrank())

    def back(X: LowRank) -> LowRank:
        for step in undo:
            X = step(X)
        return (X.balanced() if problem.gauge == "balanced" else X).astype(dtype)

    return problem._replace(target=W, init=X0, metric=None, oversample=0, gauge="paper"), back


def _with_more_columns(W: LowRankSum, X0: LowRank, p: int, first: Factor, rng: RNG) -> LowRank:
    """X₀ with p more columns: random combinations of the target's on the side used first, zeros on the other."""
    used, other = (X0.V, X0.U) if first == "U" else (X0.U, X0.V)
    xp = namespace_of(used)
    if W.is_factored:
        stack = stacked(W)[1 if first == "U" else 0]
        extra = stack / scale_of(stack) @ normal((stack.shape[-1], p), stack, rng)
    else:
        extra = xp.broadcast_to(normal((used.shape[-2], p), used, rng), (*used.shape[:-1], p))
    used = xp.concat([used, extra], axis=-1)
    other = xp.concat([other, zeros_like((*other.shape[:-1], p), other)], axis=-1)
    return LowRank._of(other, used) if first == "U" else LowRank._of(used, other)


def _same(X: LowRank) -> LowRank:
    return X
