"""Checks of the options that the rules share, and what they do to a step: learning rate, decay, ascent."""

import math
from collections.abc import Sequence

import numpy as np
from array_api_compat import is_array_api_obj

from lorsum._arrays import as_number, is_scalar, is_traced
from lorsum.lowrank import LowRank, as_sum

__all__ = [
    "check_betas",
    "check_fraction",
    "check_lr",
    "check_maximize",
    "check_nonnegative",
    "check_positive",
    "decayed",
    "decayed_factors",
    "descending",
    "is_used",
    "lr_at",
]


def lr_at(lr, count):
    """The learning rate of step ``count``."""
    if not callable(lr):
        return as_number(lr)
    value = as_number(lr(count))
    check_nonnegative("lr", value)
    return value


def decayed(W, lr, weight_decay):
    """The first term of a target, (1 − η · weight_decay) W: decoupled weight decay, of the product."""
    return (1 - lr * weight_decay) * W if is_used(weight_decay) else W


def decayed_factors(U, V, lr, weight_decay):
    """The factors of (1 − η · weight_decay) U Vᵀ, which both take their part of the decay."""
    kept = 1 - lr * weight_decay
    root = abs(kept) ** 0.5
    return (2 * (kept >= 0) - 1) * root * U, root * V


def descending(G, maximize):
    """The gradient of what a rule is to minimise: −G where it maximises."""
    if not maximize or not hasattr(G, "shape"):
        return G
    return -G if is_array_api_obj(G) else LowRank(-G.U, G.V) if isinstance(G, LowRank) else -as_sum(G, "G")


def is_used(value):
    """False for an option that is zero; what JAX has traced may be anything."""
    return is_traced(value) or bool(value)


def check_lr(lr):
    """Learning rates are non-negative numbers, or callables of the step."""
    if not callable(lr):
        check_nonnegative("lr", lr)


def check_nonnegative(name, value):
    """An error unless ``value`` is a finite number of at least 0."""
    if not is_scalar(value) or isinstance(value, complex):
        raise TypeError(f"`{name}` is {value!r}; a number is needed.")
    if not is_traced(value) and not 0 <= float(value) < math.inf:
        raise ValueError(f"`{name}` is {value}; it must be finite and at least 0.")


def check_maximize(value):
    """An error unless ``maximize`` is a truth value."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"`maximize` is {value!r}; True or False is needed.")


def check_positive(name, value):
    """An error unless ``value`` is a finite number above 0."""
    check_nonnegative(name, value)
    if not is_traced(value) and float(value) == 0:
        raise ValueError(f"`{name}` is 0; it must be above 0.")


def check_fraction(name, value):
    """An error unless ``value`` lies in [0, 1)."""
    check_nonnegative(name, value)
    if not is_traced(value) and float(value) >= 1:
        raise ValueError(f"`{name}` is {value}; it must be below 1.")


def check_betas(betas):
    """An error unless ``betas`` are two numbers in [0, 1)."""
    if not isinstance(betas, Sequence):
        raise TypeError(f"`betas` is {betas!r}; a pair of numbers is needed.")
    if len(betas) != 2:
        raise ValueError(f"`betas` is {betas!r}; two numbers are needed.")
    for value in betas:
        check_fraction("betas", value)
