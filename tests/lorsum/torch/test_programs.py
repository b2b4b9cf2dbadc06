"""Random training programs: what the optimizers step by is what autograd accumulates, whatever happens in between.

A program is a list of events: forward passes, backward passes through any of those that are pending, gradients that are
cleared, multiplied and clipped, adapters that are frozen and thawed, weights changed through ``.data``, evaluation,
hooks, steps. A twin, in which each adapter is one dense matrix B·A and a leaf of its own, lives through the same; its
``.grad`` is the gradient with respect to B·A, by autograd alone, and a rule of lorsum.optim on NumPy arrays takes its
steps. Before each step the gradients are compared, after it the weights.

200 programs are drawn; with the environment variable HYPOTHESIS_PROFILE=long 5,000 (a few minutes).
"""

import math
import os

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lorsum import LowRank
from lorsum.torch import LoRALinear, OPLoRA

PROGRAMS = 5000 if os.environ.get("HYPOTHESIS_PROFILE") == "long" else 200
NAMES = ("first", "middle", "last")
# By dtype: how far rounding may carry the gradients, and a step, from the twin's. In half precision it is only the
# gradients that are compared: their rounding errors, not those of a step, are those of the network.
TOLERANCES = {torch.float64: (1e-9, 1e-6), torch.float32: (1e-4, 5e-3), torch.bfloat16: (0.2, None)}


class Network(nn.Module):
    def __init__(self, seed, dropout):
        super().__init__()
        torch.manual_seed(seed)
        self.first = LoRALinear((6, 5), 2, alpha=3, dropout=dropout, bias=False)
        self.middle = LoRALinear((5, 5), 1, dropout=dropout, bias=False)
        self.last = LoRALinear((5, 4), 2, alpha=-1, dropout=dropout, bias=False)
        for name in NAMES:
            nn.init.normal_(getattr(self, name).lora_B.weight, std=0.5)

    def forward(self, x, calls=1, call=None):
        """The outputs, ``middle`` being called some times; ``call(layer, x)`` is how."""
        call = call or (lambda layer, x: layer(x))
        h = torch.tanh(call(self.first, x))
        for _ in range(calls):
            h = h + torch.tanh(call(self.middle, h))
        return call(self.last, h)


class Program:
    """A model and its twin, and what has happened to them.

    Parameters
    ----------
    options : dict
        ``seed``, ``dtype``, ``dropout``, ``zero`` (which factor starts with zeros), ``momentum``, ``gradient`` and
        ``overlap``.
    """

    def __init__(self, options):
        self.rng = torch.Generator().manual_seed(options["seed"])
        self.dtype = options["dtype"]
        self.model = Network(options["seed"], options["dropout"]).to(self.dtype)
        self.layers = {name: getattr(self.model, name) for name in NAMES}
        if options["zero"] is not None:
            nn.init.zeros_(getattr(self.model.middle, options["zero"]).weight)
        # Large steps saturate tanh, whose derivative 1 - t² has no digits left in half precision
        rule = {"lr": 1e-4 if self.dtype == torch.bfloat16 else 0.05, "momentum": options["momentum"]}
        self.optimizer = OPLoRA(self.model, gradient=options["gradient"], overlap=options["overlap"], **rule)
        self.rule = OPLoRA.Rule(**rule)
        self.states: dict = {}
        self.twin = {name: nn.Parameter(self.product(name)) for name in NAMES}
        self.pending: list = []  # outputs of the model and of the twin
        self.recomputed = False  # in the backward pass of one that may be pending
        self.x_buffer, self.S_buffer = (torch.zeros(3, d, dtype=self.dtype) for d in (6, 4))
        self.hooks: list = []
        self.hooked_weights = False  # ever
        self.compared = 0  # steps

    # --- the two ---

    def factors(self, name):
        return self.layers[name].lora_A.weight, self.layers[name].lora_B.weight

    def product(self, name):
        A, B = self.factors(name)
        return B.detach() @ A.detach()

    def call_twin(self, layer, x):
        (name,) = [name for name in NAMES if self.layers[name] is layer]
        return layer.base(x) + layer.scaling * F.linear(layer.dropout(x), self.twin[name])

    def random(self, *shape):
        return torch.randn(*shape, generator=self.rng, dtype=torch.float64).to(self.dtype)

    def gradients_of(self, names):
        """.grad of the adapters' factors, and of the twin's matrices, that are there."""
        factors = [p.grad for name in names for p in self.factors(name) if p.grad is not None]
        return factors, [self.twin[name].grad for name in names if self.twin[name].grad is not None]

    # --- events ---

    def forward(self, rows, calls, reuse, checkpointed):
        """A forward pass of both; ``reuse`` puts the batch into a buffer that later ones overwrite."""
        x = self.random(rows, 6)
        if reuse and not self.pending:
            self.x_buffer[:rows] = x
            x = self.x_buffer[:rows]
        seed = int(torch.randint(2**31, (), generator=self.rng))
        outputs = []
        for call in (None, self.call_twin):
            torch.manual_seed(seed)  # of dropout
            if checkpointed is None:
                outputs.append(self.model(x, calls, call))
            else:
                x = x.detach().requires_grad_() if checkpointed else x
                outputs.append(checkpoint(self.model, x, calls, call, use_reentrant=checkpointed))
        if all(y.requires_grad for y in outputs):
            self.pending.append(outputs)
            self.recomputed = self.recomputed or checkpointed is False

    def backward(self, which, scale, way):
        """A backward pass from one of the pending outputs."""
        if not self.pending:
            return
        outputs = self.pending.pop(which % len(self.pending))
        received = self.random(*outputs[0].shape) * scale
        for y in outputs:
            if way == "loss":
                ((y * received).sum() + y.square().sum() * scale).backward()
            elif way == "buffer":  # the gradient as a pipeline's stage receives it, in memory that is used again
                self.S_buffer[: len(y)] = received
                y.backward(gradient=self.S_buffer[: len(y)])
                self.S_buffer.fill_(7.0)
            elif way == "twice":
                y.backward(gradient=received, retain_graph=True)
                y.backward(gradient=received * 2)
            else:  # for the trained weights by name
                matrices = [self.twin[name] for name in NAMES]
                inside = [p for name in NAMES for p in self.factors(name)] if y is outputs[0] else matrices
                inside = [p for p in inside if p.requires_grad]
                if inside:
                    torch.autograd.backward(y, received, inputs=inside)
        if not self.pending:
            self.x_buffer.fill_(-7.0)
            self.recomputed = False

    def not_a_number(self, clear):
        """A micro-batch whose loss is nan, which the loop skips."""
        self.forward(2, 1, False, None)
        self.backward(-1, math.nan, "loss")
        self.clear(clear)

    def inputs_alone(self, times):
        """Gradients with respect to inputs leave .grad alone."""
        x = self.random(2, 6).requires_grad_()
        y = self.model(x)
        for _ in range(times):
            torch.autograd.grad(y.square().sum(), x, retain_graph=True)
        if times == 1:
            torch.autograd.backward(y.sum(), inputs=[x])

    def evaluate(self, inference):
        self.model.eval()
        with torch.inference_mode() if inference else torch.no_grad():
            self.model(self.random(3, 6))
        self.model.train()

    def clear(self, way):
        trained = [p for name in NAMES for p in self.factors(name)]
        to_none = way in ("optimizer", "model", "None")
        if way.startswith("optimizer"):
            self.optimizer.zero_grad(set_to_none=to_none)
        elif way.startswith("model"):
            self.model.zero_grad(set_to_none=to_none)
        for p in [] if way.startswith(("optimizer", "model")) else trained:
            if p.grad is None or way == "None":
                p.grad = None
            elif way == "assigned":
                p.grad = torch.zeros_like(p)
            else:
                (p.grad.data if way == "data" else p.grad).zero_()
        for matrix in self.twin.values():
            matrix.grad = None if to_none or matrix.grad is None else torch.zeros_like(matrix)

    def clear_one(self, name):
        for p in (*self.factors(name), self.twin[name]):
            p.grad = None

    def multiply(self, names, c, way):
        """All gradients of some adapters, by one number."""
        factors, matrices = self.gradients_of(names)
        for grad in matrices:
            grad.mul_(c)
        if way == "foreach" and factors:
            torch._foreach_mul_(factors, c)
        for p in (p for name in names for p in self.factors(name) if p.grad is not None):
            if way == "assigned":
                p.grad = c * p.grad
            elif way != "foreach":
                (p.grad.data if way == "data" else p.grad).mul_(c)

    def clip(self, size):
        parameters = [p for name in NAMES for p in self.factors(name)]
        factors, matrices = self.gradients_of(NAMES)
        before = [grad.clone() for grad in factors]
        if factors:
            nn.utils.clip_grad_norm_(parameters, size)
            c = float(sum((x * y).sum() for x, y in zip(factors, before, strict=True)))
            square = float(sum((y * y).sum() for y in before))
            for grad in matrices:
                grad.mul_(c / square if square > 0 else 1.0)

    def freeze(self, name, frozen):
        """Freeze or thaw an adapter: not where torch would recompute another graph than that of the forward pass."""
        if self.recomputed:
            return
        for p in (*self.factors(name), self.twin[name]):
            p.requires_grad_(not frozen)

    def change(self, name, c, way):
        """The weights, behind autograd's back: not while a graph that has saved them is pending."""
        if self.pending:
            return
        for p in self.factors(name):
            if way == "decay":
                p.data.mul_(c)
            elif way == "swap":
                p.data = p.data * c
            else:
                p.data.copy_(torch.round(p.data * 16) / 16 + c / 64)
        self.twin[name].data.copy_(self.product(name))

    def hook(self, kind, name):
        """Hooks of others, which only look; a second time they are taken away."""
        if self.hooks:
            self.hooks.pop().remove()
            return
        layer = self.layers[name]
        look = {"with_kwargs": True} if kind == "kwargs" else {}
        for module in (layer.lora_A, layer.lora_B, layer):
            if kind == "backward":
                self.hooks.append(module.register_full_backward_hook(lambda *_: None))
            elif kind == "before backward":
                self.hooks.append(module.register_full_backward_pre_hook(lambda *_: None))
            elif kind in ("forward", "kwargs"):
                self.hooks.append(module.register_forward_hook(lambda *_: None, always_call=True, **look))
                self.hooks.append(module.register_forward_pre_hook(lambda *_: None, prepend=True, **look))
            elif kind == "replaced":  # by its double, and back: another tensor of the same values
                self.hooks.append(module.register_forward_pre_hook(lambda module, args: (args[0].clone(),)))
        for p in self.factors(name):
            self.hooked_weights = self.hooked_weights or kind == "tensor"
            if kind == "tensor" and p.requires_grad:
                self.hooks.append(p.register_hook(lambda grad: None))
            elif kind == "accumulated" and p.requires_grad:
                self.hooks.append(p.register_post_accumulate_grad_hook(lambda p: None))

    def step(self):
        """A step of both; adapters without a gradient are frozen for it, gradients that are not finite skipped."""
        trained = [name for name in NAMES if self.twin[name].requires_grad and self.twin[name].grad is not None]
        if not all(bool(self.twin[name].grad.isfinite().all()) for name in trained):
            self.clear("model, zeroed")
        self.pending, self.recomputed = [], False  # graphs that have saved the weights as they are now
        left_out = [name for name in NAMES if self.twin[name].requires_grad and name not in trained]
        if not trained:
            return
        try:
            self.compare_gradients(trained)
        except RuntimeError as error:  # what hooks make of gradients by several weights is refused, here and in step
            if not (self.hooked_weights and "with different weights" in str(error)):
                raise
            self.clear("model")
            return
        for name in left_out:
            self.freeze(name, True)
        expected = {name: self.stepped(name) for name in trained}
        self.optimizer.step()
        for name in left_out:
            self.freeze(name, False)
        tolerance = TOLERANCES[self.dtype][1]
        for name in NAMES:
            if name in expected and tolerance is not None:
                assert_near(self.product(name), torch.as_tensor(expected[name].to_dense()), tolerance, name)
            self.twin[name].data.copy_(self.product(name))
        self.compared += 1

    def compare_gradients(self, names):
        gradients = self.optimizer.gradients()
        for name in names:
            G, expected = gradients.get(name), self.twin[name].grad
            G = torch.zeros_like(expected) if G is None else G.to_dense() if isinstance(G, LowRank) else G
            assert_near(G, expected, TOLERANCES[self.dtype][0], name)

    def stepped(self, name):
        """The twin's new matrix, by the rule on NumPy arrays."""
        single_or_double = torch.promote_types(self.dtype, torch.float32)
        A, B = (p.detach().to(single_or_double) for p in self.factors(name))
        W, G = LowRank(B.numpy().copy(), A.numpy().T.copy()), self.twin[name].grad.to(A.dtype).numpy().copy()
        if name not in self.states:
            rng = np.random.default_rng([self.optimizer.seed, NAMES.index(name)])
            self.states[name] = self.rule.init(W, rng=rng)
        W, self.states[name] = self.rule.step(W, G, self.states[name])
        return W

    def nothing_is_held(self):
        """After the model's zero_grad."""
        self.pending.clear()
        self.model.zero_grad()
        self.model(self.random(2, 6))
        assert set(self.optimizer.gradient_nbytes().values()) == {0}
        assert not any(capture._staged for capture in self.optimizer._captures)


def assert_near(actual, expected, tolerance, name):
    size = max(float(expected.norm()), 1e-12)
    assert float((actual.double() - expected.double()).norm()) <= tolerance * size, name


def event(method, **arguments):
    return st.tuples(st.just(method), st.fixed_dictionaries(arguments))


NAME, SUBSET = st.sampled_from(NAMES), st.sets(st.sampled_from(NAMES), min_size=1).map(sorted)
CLEARINGS = st.sampled_from(
    ["optimizer", "optimizer, zeroed", "model", "model, zeroed", "None", "assigned", "zeroed", "data"]
)
FACTORS = st.sampled_from([-1.0, 0.5, -0.25, 2.0**-12, 3.0, 1.0])
FORWARD = event(
    "forward",
    rows=st.integers(1, 3),
    calls=st.integers(0, 2),
    reuse=st.booleans(),
    checkpointed=st.sampled_from([None, None, False, True]),
)
BACKWARD = event(
    "backward",
    which=st.integers(0, 2),
    scale=st.sampled_from([1.0, 0.25, 64.0, -1.0]),
    way=st.sampled_from(["loss", "buffer", "twice", "inputs"]),
)
OTHERS = st.one_of(
    event("not_a_number", clear=CLEARINGS),
    event("inputs_alone", times=st.integers(1, 3)),
    event("evaluate", inference=st.booleans()),
    event("clear", way=CLEARINGS),
    event("clear_one", name=NAME),
    event("multiply", names=SUBSET, c=FACTORS, way=st.sampled_from(["in place", "data", "assigned", "foreach"])),
    event("clip", size=st.sampled_from([0.01, 1e6])),
    event("freeze", name=NAME, frozen=st.booleans()),
    event("change", name=NAME, c=st.sampled_from([0.9, 1.5]), way=st.sampled_from(["decay", "swap", "quantise"])),
    event(
        "hook",
        name=NAME,
        kind=st.sampled_from(["forward", "kwargs", "replaced", "backward", "before backward", "tensor", "accumulated"]),
    ),
)
STEP = event("step")
OPTIONS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**20),
        "dtype": st.sampled_from([torch.float64, torch.float64, torch.float32, torch.bfloat16]),
        "dropout": st.sampled_from([0.0, 0.3]),
        "zero": st.sampled_from([None, None, "lora_A", "lora_B"]),
        "momentum": st.sampled_from([0.0, 0.9]),
        "gradient": st.sampled_from(["auto", "pairs", "dense"]),
        "overlap": st.booleans(),
    }
)
EVENTS = st.lists(st.one_of(FORWARD, BACKWARD, FORWARD, BACKWARD, OTHERS, STEP, STEP), min_size=8, max_size=40)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # where no input requires a gradient
@settings(max_examples=PROGRAMS, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(OPTIONS, EVENTS)
def test_every_step_is_by_what_autograd_has_accumulated(options, events):
    program = Program(options)
    for method, arguments in events:
        getattr(program, method)(**arguments)
    program.forward(2, 1, False, None)
    program.backward(0, 1.0, "loss")
    program.step()
    program.nothing_is_held()
