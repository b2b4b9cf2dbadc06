"""Trains on eight host devices, for test_sharding.py: prints what came out, and what compiled steps communicate."""

import json
import os
import re
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lorsum import LowRank
from lorsum import jax as lj

M, N, RANK, ROWS, STEPS = 256, 192, 4, 32, 5
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def problem():
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    params = {
        name: {"W": LowRank(normal(M, RANK) / 16, normal(N, RANK) / 16), "b": jnp.zeros(M)} for name in ("one", "two")
    }
    return params, normal(ROWS, N), normal(ROWS, M)


def loss(params, x, y):
    total = 0.0
    for layer in params.values():
        total = total + jnp.mean((jnp.tanh(lj.lora(x, layer["W"]) + layer["b"]) - y) ** 2)
    return 50 * total


def step_of(case, params):
    adapters = getattr(lj, case["optimizer"])(case.get("lr", 0.3), **case.get("options", {}))
    tx = optax.multi_transform({"adapters": adapters, "others": optax.sgd(0.1, momentum=0.9)}, lj.labels(params))

    def step(params, state, x, y):
        value, gradients = lj.value_and_grad(loss, gradient=case["gradient"])(params, x, y)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    return tx, step


def train(case, sharded):
    """Weights after some steps, and the compiled step."""
    params, x, y = problem()
    tx, step = step_of(case, params)
    state = tx.init(params)
    if sharded:
        mesh = Mesh(np.array(jax.devices()).reshape(case["mesh"]), ("data", "model"))
        rows = NamedSharding(mesh, PartitionSpec("data", None))

        def placed(leaf):
            by_rows = leaf.ndim == 2 and leaf.shape[0] in (M, N)
            return jax.device_put(
                leaf, NamedSharding(mesh, PartitionSpec("model", None) if by_rows else PartitionSpec())
            )

        params, state = jax.tree.map(placed, (params, state))
        x, y = jax.device_put(x, rows), jax.device_put(y, rows)
        placement = jax.tree.map(lambda leaf: leaf.sharding, (params, state))
        compiled = jax.jit(step, out_shardings=(*placement, None)).lower(params, state, x, y).compile()
    else:
        compiled = jax.jit(step).lower(params, state, x, y).compile()
    for _ in range(STEPS):
        params, state, _ = compiled(params, state, x, y)
    return [np.asarray(layer["W"].to_dense()) for layer in params.values()], compiled


def communicated(compiled):
    """The collectives of a compiled program, and the numbers in the largest array of each."""
    found = []
    for line in compiled.as_text().splitlines():
        match = re.search(rf"= (.*?) ({'|'.join(COLLECTIVES)})(-start)?\(", line)
        if match:
            shapes = re.findall(r"\[([\d,]*)\]", match[1])
            found.append([match[2], max(int(np.prod([int(d) for d in s.split(",") if d])) for s in shapes)])
    return found


def compared(case):
    """How far the result is from one device's, how far the steps went, and the collectives."""
    expected, _ = train(case, False)
    actual, compiled = train(case, True)
    start = [np.asarray(layer["W"].to_dense()) for layer in problem()[0].values()]

    def relative(ones, others):
        return [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(ones, others, strict=True)]

    return {"off": relative(actual, expected), "moved": relative(expected, start), "sent": communicated(compiled)}


if __name__ == "__main__":
    assert len(jax.devices()) == 8
    print(json.dumps([compared(case) for case in json.loads(sys.argv[1])]))
