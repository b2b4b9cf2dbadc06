"""Low-rank matrices and the states of the rules in files: for ``jax.export``, and for Flax where it is imported.

Importing this lets arguments and results of exported programs be low-rank matrices, sums, pairs and states.
"""

import sys

from jax import export

from lorsum.jax._pytrees import PARTS
from lorsum.jax.wrappers import ApplyIfFiniteState, MultiStepsState
from lorsum.optim import factors, matrices, oplora, scaled

_STATES = factors.SGDState, factors.AdamWState, matrices.SVDLoRAState, oplora.OPLoRAState, scaled.ScaledOPLoRAState


def register_with_flax() -> None:
    """Let ``flax.serialization`` write and read low-rank matrices, once Flax is imported; states are known to it."""
    serialization = sys.modules.get("flax.serialization")
    if serialization is None:
        return
    for kind, names in PARTS.items():
        serialization.register_serialization_state(kind, *_state_dicts(serialization, kind, names), override=True)


def _state_dicts(serialization, kind, names):
    def to_state_dict(x):
        return {name: serialization.to_state_dict(getattr(x, name)) for name in names}

    def from_state_dict(x, state):
        if not isinstance(state, dict) or set(state) != set(names):
            raise ValueError(f"a state of a {kind.__name__} has the parts {names}; this has {state!r:.200}.")
        return kind._of(*(serialization.from_state_dict(getattr(x, name), state[name], name=name) for name in names))

    return to_state_dict, from_state_dict


for _kind in PARTS:
    export.register_pytree_node_serialization(
        _kind,
        serialized_name=f"lorsum.{_kind.__name__}",
        serialize_auxdata=lambda _: b"",
        deserialize_auxdata=lambda _: None,
    )
for _kind in (*_STATES, ApplyIfFiniteState, MultiStepsState):
    export.register_namedtuple_serialization(_kind, serialized_name=f"lorsum.{_kind.__name__}")
