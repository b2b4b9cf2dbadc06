"""A step of a rule in PyTorch: its computation, and its result, which is written when all have been computed."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lorsum.lowrank import LowRank
from lorsum.optim import Rule
from lorsum.optim.rule import require_adapter_of_that_form
from lorsum.torch._arrays import ParameterArray, StateTensors
from lorsum.typing import Array

__all__ = ["Update", "named", "stepped"]


class Update(NamedTuple):
    """New values of parameters, and their rule's new state."""

    parameters: Sequence[ParameterArray]
    values: Sequence[Array]
    tensors: StateTensors
    state: Any

    def write(self) -> None:
        """Put them in place."""
        for parameter, value in zip(self.parameters, self.values, strict=True):
            parameter.put(value)
        self.tensors.put(self.state)


def stepped(rule: Rule, W: Any, G: Any, state: Any) -> tuple[Any, Any]:
    """The rule's new matrix and state.

    BLAS kernels set flags for numbers beside the matrices, which NumPy warns of; what is not finite the rule refuses.
    """
    with np.errstate(all="ignore"):
        new, state = rule.step(W, G, state)
    if isinstance(W, LowRank):
        require_adapter_of_that_form(rule, new, W)
    return new, state


class named:
    """Errors of a rule with the name of what it was stepping."""

    def __init__(self, name: str):
        self.name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is not None:
            error.add_note(f"in the step of {self.name}")
