"""Steps of the parameters outside the adapters: small ones together, as one vector, since their rules act entrywise."""

import itertools

import numpy as np
import torch

from lorsum.torch import _bridge as bridge

__all__ = ["Others", "kind_of", "named"]

SMALL = 2**16  # numbers in a parameter, up to which what Python costs outweighs a copy


class Others:
    """The parameters of a group that have a gradient, and their states.

    Parameters
    ----------
    rule : SGD or AdamW
        Of :mod:`lorsum.optim`.
    parameters : list of torch.Tensor
        What to step.
    states : dict
        ``Optimizer.state``, which is filled.
    names : dict
        What errors call the parameters.
    """

    def __init__(self, rule, parameters, states, names):
        self.kind, self.parameters, self.states = kind_of(rule), parameters, states
        together: dict = {}
        self.parts: list = []
        for p in parameters:
            if p.is_cpu and p.dtype in (torch.float32, torch.float64) and p.numel() <= SMALL and not p.grad.is_sparse:
                together.setdefault((p.dtype, int(states[p].get("step", 0))), []).append(p)
            else:
                self.parts.append(_One(rule, p, states[p]))
        self.parts += [_Bundle(rule, group, [states[p] for p in group]) for group in together.values()]
        self.names = [", ".join(f"`{names[p]}`" for p in part.parameters) for part in self.parts]
        self.tensors = [(states[p], dict(states[p])) for p in parameters]

    def are(self, rule, parameters, states):
        """True if these are the parameters, the states their states, and of the rule's kind."""
        return (
            self.kind == kind_of(rule)
            and self.states is states
            and len(parameters) == len(self.parameters)
            and all([p is q for p, q in zip(parameters, self.parameters, strict=True)])
            and all([states[p] is now for p, (now, _) in zip(parameters, self.tensors, strict=True)])
            and all([now.get(name) is x for now, then in self.tensors for name, x in then.items()])
        )

    def stepped(self, rule):
        """Of each part: slots of its parameters, their new values, where the state is held, and the new state."""
        for part, name in zip(self.parts, self.names, strict=True):
            with named(name):
                if any([p.grad.is_sparse for p in part.parameters]):
                    raise TypeError(
                        f"the gradient of {name} is sparse, which {type(rule).__name__} does not take here: pass "
                        "`sparse=False` to the embedding, or freeze it until this optimizer is made and train it by "
                        "one of torch.optim."
                    )
                yield part.stepped(rule)


class _One:
    """A parameter by itself."""

    def __init__(self, rule, p, tensors):
        self.parameters, self.slots = [p], bridge.Slots(p)
        self.held = bridge.Held(rule.init(bridge.to_arrays(p)), tensors)

    def stepped(self, rule):
        slots = self.slots.current()
        W, state = rule.step(slots[0].array, bridge.to_arrays(slots[0].p.grad), self.held.state)
        return slots, [W], self.held, state


class _Bundle:
    """Parameters of one dtype and step count, of which the states are slices of one."""

    def __init__(self, rule, parameters, states):
        self.parameters, self.slots = parameters, bridge.Slots(*parameters)
        ends = np.cumsum([p.numel() for p in parameters]).tolist()
        self.bounds = list(itertools.pairwise([0, *ends]))
        whole: dict = {"step": states[0].get("step", torch.tensor(0)).clone()}
        self.held = bridge.Held(rule.init(_vector([p.detach().numpy() for p in parameters])), whole)
        for name, vector in whole.items():
            parts = [vector] * len(states) if name == "step" else [vector[a:b] for a, b in self.bounds]
            for p, state, part in zip(parameters, states, parts, strict=True):
                if name != "step":
                    part = part.view(p.shape)
                    part.copy_(state.get(name, part))
                state[name] = part

    def stepped(self, rule):
        slots = self.slots.current()
        W, G = _vector([slot.array for slot in slots]), _vector([slot.p.grad.numpy() for slot in slots])
        W, state = rule.step(W, G, self.held.state)
        return slots, [W[a:b] for a, b in self.bounds], self.held, state


def _vector(arrays):
    return np.concatenate([x.ravel() for x in arrays])


def kind_of(rule):
    """What the structure of a rule's state depends on."""
    return type(rule), bool(getattr(rule, "momentum", True))


class named:
    """Errors of a rule with the name of what it was stepping."""

    def __init__(self, name):
        self.name = name

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if error is not None:
            error.add_note(f"in the step of {self.name}")
