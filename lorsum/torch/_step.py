"""A step of a rule in PyTorch: its computation, and its result, which is written when all have been computed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from lorsum.lowrank import LowRank
from lorsum.optim import Rule
from lorsum.optim.rule import require_adapter_of_that_form
from lorsum.torch._arrays import ParameterArray, StateTensors
from lorsum.typing import Array


class Update(NamedTuple):
    """New values of parameters, and their rule's new state."""

    parameters: Sequence[ParameterArray]
    values: Sequence[Array]
    tensors: StateTensors
    state: Any

    def write(self) -> None:
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


@contextmanager
def named(name: str) -> Iterator[None]:
    """Errors of a rule with the name of what it was stepping."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in the step of {name}")
        raise
