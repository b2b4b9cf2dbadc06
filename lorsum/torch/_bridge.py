"""From tensors to what the rules compute on, and back: on the CPU NumPy views, which lorsum's kernels take."""

from typing import NamedTuple

import numpy as np
import torch

from lorsum.lowrank import LowRank
from lorsum.optim import OPLoRA, ScaledOPLoRA
from lorsum.torch._gradient import half_to_single

SMALL = 2**16  # numbers in a dense gradient, from which multiplying by an identity costs more than it saves

__all__ = ["from_tensors", "gradient_for", "structure_of", "to_arrays", "to_tensors", "update", "write"]


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


def write(target, array):
    """Copy an array into a parameter, in the parameter's own shape and dtype."""
    array = torch.from_numpy(array) if isinstance(array, np.ndarray) else array
    target.copy_(array.reshape(target.shape))


def to_tensors(state):
    """The arrays and counts in a rule's state, by their place in it: ``{"step": …, "M.U": …, "M.V": …}``."""
    return {place: _tensor(leaf) for place, leaf in _leaves(state)}


def structure_of(state):
    """A rule's state with places in place of its arrays and counts."""
    return _mapped(state, lambda place, leaf: _Place(place, isinstance(leaf, int)))


def from_tensors(structure, tensors):
    """The state of a rule, of this structure, with the values that :func:`to_tensors` or :func:`update` left."""

    def value(_, leaf):
        return int(tensors[leaf.name]) if leaf.counts else to_arrays(tensors[leaf.name])

    return _mapped(structure, value)


def update(tensors, state):
    """Put a rule's new state into the tensors of its old one."""
    for place, leaf in _leaves(state):
        if isinstance(leaf, int):
            tensors[place].fill_(leaf)
        else:
            write(tensors[place], leaf)


class _Place(NamedTuple):
    name: str
    counts: bool


def _leaves(state):
    found = []
    _mapped(state, lambda place, leaf: found.append((place, leaf)))
    return found


def _mapped(x, f, place=""):
    """The tree of named tuples, tuples and low-rank matrices with f(place, leaf) for its leaves."""
    if x is None:
        return None

    def part(name, x):
        name = "step" if name == "count" else name  # which torch knows: it leaves a step on the CPU
        return _mapped(x, f, f"{place}.{name}" if place else name)

    if isinstance(x, _Place):
        return f(place, x)
    if isinstance(x, LowRank):
        return LowRank._of(part("U", x.U), part("V", x.V))
    if hasattr(x, "_asdict"):
        return type(x)(**{name: part(name, value) for name, value in x._asdict().items()})
    if isinstance(x, tuple):
        return tuple(part(str(i), value) for i, value in enumerate(x))
    return f(place, x)


def _tensor(leaf):
    """A tensor of its own, in the layout of the array: what was saved and loaded is then computed with alike."""
    if isinstance(leaf, int):
        return torch.tensor(leaf)
    return (torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf).clone()
