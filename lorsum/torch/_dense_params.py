"""Parameters outside the adapters: small ones step together, as one vector, since their rules act entrywise."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lorsum.optim import Rule
from lorsum.torch._arrays import ParameterArrays, StateTensors, to_arrays
from lorsum.torch._options import have_same_structure
from lorsum.torch._step import Update, named

SMALL = 2**16  # numbers in a parameter, up to which what Python costs outweighs a copy


class DenseParameters:
    """The parameters of one group outside its adapters, with the names that errors call them by."""

    def __init__(self, names: dict[Tensor, str]):
        self.names = names
        self._prepared: _Prepared | None = None

    def updates(self, rule: Rule, states: dict[Tensor, dict[str, Any]]) -> Iterator[Update]:
        """The next steps of those that have a gradient, not written yet; ``states`` is ``Optimizer.state``."""
        parameters = [p for p in self.names if p.grad is not None]
        if not parameters:
            return
        if self._prepared is None or not self._prepared.is_for(rule, parameters, states):
            self._prepared = _Prepared(rule, parameters, states, self.names)
        for part in self._prepared.parts:
            with named(part.name):
                if any([_gradient(p).is_sparse for p in part.arrays.parameters]):
                    raise TypeError(
                        f"the gradient of {part.name} is sparse, which {type(rule).__name__} does not take here: pass "
                        "`sparse=False` to the embedding, or freeze it until this optimizer is made and train it by "
                        "one of torch.optim."
                    )
                yield part.update(rule)


class _Prepared:
    """Parameters that have a gradient, in the parts that step together, and the tensors of their states."""

    def __init__(
        self, rule: Rule, parameters: list[Tensor], states: dict[Tensor, dict[str, Any]], names: dict[Tensor, str]
    ):
        self.rule, self.parameters, self.states = rule, parameters, states
        together: dict[Any, list[Tensor]] = {}
        self.parts: list[_One | _Bundle] = []
        for p in parameters:
            small = p.is_cpu and p.dtype in (torch.float32, torch.float64) and p.numel() <= SMALL
            if small and not _gradient(p).is_sparse:
                together.setdefault((p.dtype, int(states[p].get("step", 0))), []).append(p)
            else:
                self.parts.append(_One(rule, p, states[p], f"`{names[p]}`"))
        for group in together.values():
            named_together = ", ".join(f"`{names[p]}`" for p in group)
            self.parts.append(_Bundle(rule, group, [states[p] for p in group], named_together))
        self.tensors = [(states[p], dict(states[p])) for p in parameters]

    def is_for(self, rule: Rule, parameters: list[Tensor], states: dict[Tensor, dict[str, Any]]) -> bool:
        """True if these are the parameters, the states their states, and of the rule's structure."""
        return (
            have_same_structure(self.rule, rule)
            and self.states is states
            and len(parameters) == len(self.parameters)
            and all([p is q for p, q in zip(parameters, self.parameters, strict=True)])
            and all([states[p] is now for p, (now, _) in zip(parameters, self.tensors, strict=True)])
            and all([now.get(name) is x for now, then in self.tensors for name, x in then.items()])
        )


class _One:
    """A parameter by itself."""

    def __init__(self, rule: Rule, p: Tensor, tensors: dict[str, Any], name: str):
        self.arrays, self.name = ParameterArrays(p), name
        self.held = StateTensors(rule.init(to_arrays(p)), tensors)

    def update(self, rule: Rule) -> Update:
        (parameter,) = arrays = self.arrays.current()
        W, state = rule.step(parameter.array, to_arrays(_gradient(parameter.p)), self.held.state)
        return Update(arrays, [W], self.held, state)


class _Bundle:
    """Parameters of one dtype and step count, of which the states are slices of one."""

    def __init__(self, rule: Rule, parameters: list[Tensor], states: list[dict[str, Any]], name: str):
        self.arrays, self.name = ParameterArrays(*parameters), name
        ends = np.cumsum([p.numel() for p in parameters]).tolist()
        self.bounds = list(itertools.pairwise([0, *ends]))
        whole: dict[str, Tensor] = {"step": states[0].get("step", torch.tensor(0)).clone()}
        self.held = StateTensors(rule.init(_vector([p.detach().numpy() for p in parameters])), whole)
        for key, vector in whole.items():
            for p, state, (a, b) in zip(parameters, states, self.bounds, strict=True):
                if key == "step":
                    state[key] = vector
                else:
                    part = vector[a:b].view(p.shape)
                    state[key] = part.copy_(state.get(key, part))

    def update(self, rule: Rule) -> Update:
        arrays = self.arrays.current()
        W, G = _vector([array.array for array in arrays]), _vector([_gradient(array.p).numpy() for array in arrays])
        W, state = rule.step(W, G, self.held.state)
        return Update(arrays, [W[a:b] for a, b in self.bounds], self.held, state)


def _gradient(p: Tensor) -> Tensor:
    assert p.grad is not None  # those without are left out
    return p.grad


def _vector(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([x.ravel() for x in arrays])
