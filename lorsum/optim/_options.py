"""Checks of the options that the rules share, and what they do to a step: learning rate, decay, ascent."""

import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from array_api_compat import is_array_api_obj

from lorsum._arrays import is_traced
from lorsum._checks import as_count, as_number, is_scalar
from lorsum.lowrank import LowRank, as_sum
from lorsum.typing import Scalar


def lr_at(lr: Any, count: Any) -> Scalar:
    """The learning rate of step ``count``."""
    if not callable(lr):
        return as_number(lr)
    value = as_number(lr(count))
    _check_nonnegative("lr", value)
    return value


def decayed(W: LowRank, lr: Scalar, weight_decay: Scalar) -> Any:
    """The first term of a target, (1 − η · weight_decay) W: decoupled weight decay, of the product."""
    return (1 - lr * weight_decay) * W if is_used(weight_decay) else W


def descending(G: Any, maximize: bool) -> Any:
    """The gradient of what a rule is to minimise: −G where it maximises."""
    if not maximize or not hasattr(G, "shape"):
        return G
    return -G if is_array_api_obj(G) else LowRank(-G.U, G.V) if isinstance(G, LowRank) else -as_sum(G, "G")


def is_used(value: Scalar) -> bool:
    """False for an option that is zero; what JAX has traced may be anything."""
    return is_traced(value) or bool(value)


def check_options(rule: Any) -> None:
    """An error unless every option of a rule, or of a scale, is what an option of its name must be."""
    for field in fields(rule):
        if field.name in _CHECKS:
            _CHECKS[field.name](field.name, getattr(rule, field.name))


def _check_lr(name: str, value: Any) -> None:
    if not callable(value):
        _check_nonnegative(name, value)


def _check_nonnegative(name: str, value: Any) -> None:
    if not is_scalar(value) or isinstance(value, complex):
        raise TypeError(f"`{name}` is {value!r}; a number is needed.")
    if not is_traced(value) and not 0 <= float(value) < math.inf:
        raise ValueError(f"`{name}` is {value}; it must be finite and at least 0.")


def _check_flag(name: str, value: Any) -> None:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"`{name}` is {value!r}; True or False is needed.")


def _check_positive(name: str, value: Any) -> None:
    _check_nonnegative(name, value)
    if not is_traced(value) and float(value) == 0:
        raise ValueError(f"`{name}` is 0; it must be above 0.")


def _check_fraction(name: str, value: Any) -> None:
    _check_nonnegative(name, value)
    if not is_traced(value) and float(value) >= 1:
        raise ValueError(f"`{name}` is {value}; it must be below 1.")


def _check_betas(name: str, betas: Any) -> None:
    if not isinstance(betas, Sequence):
        raise TypeError(f"`{name}` is {betas!r}; a pair of numbers is needed.")
    if len(betas) != 2:
        raise ValueError(f"`{name}` is {betas!r}; two numbers are needed.")
    for value in betas:
        _check_fraction(name, value)


def _check_count(name: str, value: Any) -> None:
    as_count(value, name, least=1)


def _check_count_or_none(name: str, value: Any) -> None:
    if value is not None:
        _check_count(name, value)


_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "lr": _check_lr,
    "momentum": _check_fraction,
    "momentum_rank": _check_count_or_none,
    "betas": _check_betas,
    "eps": _check_nonnegative,
    "weight_decay": _check_nonnegative,
    "reg": _check_nonnegative,
    "iters": _check_count,
    "maximize": _check_flag,
    "rank": _check_count,
    "smoothing": _check_fraction,
    "damping": _check_positive,
    "power": _check_nonnegative,
}
