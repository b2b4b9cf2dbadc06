"""From tensors to what the rules compute on, and back: on the CPU NumPy views, which lorsum's kernels take."""

import numpy as np
import torch

from lorsum.lowrank import LowRank
from lorsum.optim import OPLoRA, ScaledOPLoRA
from lorsum.torch._gradient import half_to_single

SMALL = 2**16  # numbers in a dense gradient, from which multiplying by an identity costs more than it saves

__all__ = ["Held", "gradient_for", "to_arrays", "to_tensor"]


def to_arrays(x):
    """A tensor, or all tensors of a low-rank matrix, as the rules take them.

    CPU tensors become NumPy views; half precision becomes float32; on accelerators tensors stay tensors.
    """
    if isinstance(x, LowRank):
        return LowRank._of(to_arrays(x.U), to_arrays(x.V))
    x = half_to_single(x.detach())
    return x.numpy() if x.is_cpu else x


def gradient_for(rule, gradient):
    """A gradient as a rule takes it: a low-rank matrix, or an array.

    The kernels that round small problems take low-rank matrices only: for them a dense G is I G or G I, with the
    identity of its smaller side.
    """
    if isinstance(gradient, LowRank):
        return to_arrays(gradient)
    G = to_arrays(gradient)
    m, n = G.shape
    for_kernels = isinstance(rule, OPLoRA) and not isinstance(rule, ScaledOPLoRA) and m * n <= SMALL
    if not (for_kernels and isinstance(G, np.ndarray)):
        return G
    eye = np.eye(min(m, n), dtype=G.dtype)
    return LowRank._of(eye, G.T) if m <= n else LowRank._of(G, eye)


def to_tensor(array):
    """An array of a rule as a tensor, without a copy."""
    return torch.from_numpy(array) if isinstance(array, np.ndarray) else array


class Held:
    """The state of a rule for one parameter, whose numbers live in tensors: ``{"step": …, "M.U": …, "M.V": …}``.

    Parameters
    ----------
    state : named tuple
        As ``rule.init`` gives it.
    tensors : dict
        Tensors by name; those that are there already are taken in place of the state's numbers.
    """

    def __init__(self, state, tensors):
        self.tensors, self.names = tensors, list[str]()

        def held(place, leaf):
            if place not in tensors:
                # In the layout of the array: what was saved and loaded is then computed with alike
                tensors[place] = torch.tensor(leaf) if isinstance(leaf, int) else to_tensor(leaf).clone()
            self.names.append(place)
            return int(tensors[place]) if isinstance(leaf, int) else to_arrays(tensors[place])

        self.state = _mapped(state, held)
        self.parts = tuple(tensors[name] for name in self.names)

    def is_of(self, tensors):
        """True if these are the tensors, so that ``state`` is still a view of them."""
        return tensors is self.tensors and all(tensors.get(n) is x for n, x in zip(self.names, self.parts, strict=True))

    def update(self, state):
        """Take a rule's new state."""
        new: list = []
        _mapped(state, lambda place, leaf: new.append(leaf))
        for tensor, leaf in zip(self.parts, new, strict=True):
            if isinstance(leaf, int):
                tensor.fill_(leaf)
            else:
                tensor.copy_(to_tensor(leaf))
        self.state = self.state._replace(count=state.count)


def _mapped(x, f, place=""):
    """The tree of named tuples, tuples and low-rank matrices with f(place, leaf) for its leaves."""
    if x is None:
        return None
    if isinstance(x, LowRank):
        return LowRank._of(_mapped(x.U, f, place + ".U"), _mapped(x.V, f, place + ".V"))
    if isinstance(x, tuple):
        names = getattr(x, "_fields", range(len(x)))
        parts = [
            _mapped(part, f, f"{place}.{name}" if place else str(name)) for name, part in zip(names, x, strict=True)
        ]
        return type(x)(*parts) if hasattr(x, "_fields") else tuple(parts)
    return f("step" if place == "count" else place, x)  # a step torch leaves on the CPU, when it loads
