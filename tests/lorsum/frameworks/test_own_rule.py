"""A rule of one's own: trained by it, in PyTorch alone and in two processes, and in JAX."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from own_rule import OneSided, ThriftyOneSided
from torch import distributed as dist
from torch import nn

import lorsum.torch
from lorsum import LowRank


class OneSidedOptimizer(lorsum.torch.AdapterOptimizer):
    Rule = OneSided


class ThriftyOptimizer(lorsum.torch.AdapterOptimizer):
    Rule = ThriftyOneSided


def network():
    torch.manual_seed(0)
    return nn.Sequential(lorsum.torch.LoRALinear((12, 60), 3), nn.Tanh(), lorsum.torch.LoRALinear((60, 50), 3))


def inputs(step):
    return torch.randn(80, 12, generator=torch.Generator().manual_seed(step))


def trained(Optimizer, rank=0, world=1):
    """Matrices after five steps on a share of every batch, and what was sent for them."""
    model = network()
    optimizer = Optimizer(model, lr=0.5)
    wrapped = nn.parallel.DistributedDataParallel(model) if world > 1 else model
    for step in range(5):
        optimizer.zero_grad()
        wrapped(inputs(step).chunk(world)[rank]).square().mean().backward()
        optimizer.step()
    return [adapter.matrix().to_dense() for adapter in optimizer.adapters], optimizer.traffic


def test_in_pytorch_a_step_is_the_rules():
    model, rule = network(), OneSided(lr=0.5)
    optimizer, states = OneSidedOptimizer(model, lr=0.5), None
    for step in range(3):
        optimizer.zero_grad()
        model(inputs(step)).square().mean().backward()
        gradients = optimizer.gradients()
        Ws = [LowRank(adapter.B.detach().clone(), adapter.A.detach().T.clone()) for adapter in optimizer.adapters]
        states = states or [rule.init(W) for W in Ws]
        expected = [rule.step(W, G, s) for W, G, s in zip(Ws, gradients.values(), states, strict=True)]
        optimizer.step()
        for adapter, (W, _) in zip(optimizer.adapters, expected, strict=True):
            torch.testing.assert_close(adapter.matrix().to_dense(), W.to_dense())
        states = [state for _, state in expected]
    assert optimizer.param_groups[0]["rule"] == "OneSided"
    other = OneSidedOptimizer(network(), lr=0.5)
    other.load_state_dict(optimizer.state_dict())
    for adapter, state in zip(other.adapters, states, strict=True):
        torch.testing.assert_close(other.state[adapter.B]["M"], state.M)


class WithoutCount(NamedTuple):
    M: Any


@dataclass
class NoTuple:
    count: int


@pytest.mark.parametrize("state", [{"count": 0}, (0, np.zeros(3)), None, NoTuple(0), WithoutCount(np.zeros(3))])
def test_in_pytorch_a_state_is_a_named_tuple(state):
    class Stateful(OneSided):
        def init(self, W, *, rng=None):
            return state

    class StatefulOptimizer(lorsum.torch.AdapterOptimizer):
        Rule = Stateful

    model = network()
    optimizer = StatefulOptimizer(model, lr=0.1)
    model(inputs(0)).square().mean().backward()
    with pytest.raises(TypeError, match=r"the state of the rule is a \w+; a named tuple is needed"):
        optimizer.step()


class Widening(OneSided):
    def step(self, W, G, state):
        return LowRank(W.U.repeat(2, axis=-1), W.V.repeat(2, axis=-1)), state


class Dense(OneSided):
    def step(self, W, G, state):
        return W.to_dense(), state


@pytest.mark.parametrize(("rule", "made"), [(Widening, r"LowRank\(.*rank 6.*\)"), (Dense, r"a \w+")])
def test_an_adapter_keeps_its_shape_and_rank(rule, made):
    class TheirOptimizer(lorsum.torch.AdapterOptimizer):
        Rule = rule

    message = rf"`step` of {rule.__name__} makes {made} of LowRank\(.*rank 3.*\); shape and rank have to stay"
    model = network()
    optimizer, before = TheirOptimizer(model, lr=0.1), [p.clone() for p in model.parameters()]
    model(inputs(0)).square().mean().backward()
    with pytest.raises(TypeError, match=message):
        optimizer.step()
    assert all(map(torch.equal, model.parameters(), before))
    jax, transformation = pytest.importorskip("jax"), pytest.importorskip("lorsum.jax").transformation
    W, tx = LowRank(jax.numpy.ones((6, 3)), jax.numpy.ones((5, 3))), transformation(rule(lr=0.1))
    with pytest.raises(TypeError, match=message):
        tx.update(jax.numpy.ones((6, 5)), tx.init(W), W)


def test_in_pytorch_a_rule_is_a_dataclass_with_a_learning_rate():
    class Plain:
        init, step = OneSided.init, OneSided.step

    class PlainOptimizer(lorsum.torch.AdapterOptimizer):
        Rule = Plain

    with pytest.raises(TypeError, match="`Rule` is Plain; a dataclass with a field `lr` is needed"):
        PlainOptimizer(network(), lr=0.1)


@pytest.fixture(scope="module")
def in_two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gloo")
    root = Path(__file__).parents[3]
    path = os.pathsep.join([str(root), str(root / "tests" / "helpers")])
    environment = {**os.environ, "PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, __file__, str(folder)]
    started = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(2)]
    assert [process.wait(timeout=300) for process in started] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("Optimizer", [OneSidedOptimizer, ThriftyOptimizer])
def test_in_two_processes_as_in_one(in_two_processes, Optimizer):
    expected, _ = trained(Optimizer)
    (first, _), (second, _) = (result[Optimizer.__name__] for result in in_two_processes)
    for W, one, other in zip(expected, first, second, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, W, rtol=1e-4, atol=1e-6)


def test_processes_send_what_the_rule_reads(in_two_processes):
    """One that says nothing gets all of G: the rows or the sum, whichever is less."""
    whole, thrifty = (in_two_processes[0][cls.__name__][1] for cls in (OneSidedOptimizer, ThriftyOptimizer))
    assert [tuple(moved) for moved in whole.values()] == [("sum", 4 * 60 * 12), ("sum", 4 * 50 * 60)]
    assert [tuple(moved) for moved in thrifty.values()] == [("products", 4 * 60 * 3), ("products", 4 * 50 * 3)]


def test_in_jax_a_step_is_the_rules():
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    import lorsum.jax

    rng, rule = np.random.default_rng(0), OneSided(lr=0.1)
    W = LowRank(*(jax.numpy.asarray(rng.normal(size=(size, 2)), jax.numpy.float32) for size in (6, 5)))
    G, tx = jax.numpy.ones((6, 5)), lorsum.jax.transformation(rule)
    expected, state, optimizer_state = W, rule.init(W), tx.init(W)
    for _ in range(3):
        updates, optimizer_state = jax.jit(tx.update)(G, optimizer_state, W)
        W = optax.apply_updates(W, updates)
        expected, state = rule.step(expected, G, state)
        np.testing.assert_allclose(W.to_dense(), expected.to_dense(), rtol=1e-5)


if __name__ == "__main__":
    folder, rank = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    done = {cls.__name__: trained(cls, rank, 2) for cls in (OneSidedOptimizer, ThriftyOptimizer)}
    torch.save(done, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
