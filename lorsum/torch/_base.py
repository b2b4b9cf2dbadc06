"""The optimizer around a rule: parameter groups, state and steps; the mathematics is the rule's."""

import copy
import weakref

import numpy as np
import torch

from lorsum import optim
from lorsum.torch import _bridge as bridge
from lorsum.torch._ahead import Ahead, stepped
from lorsum.torch._capture import Capture, Captured
from lorsum.torch._check import check_against_autograd
from lorsum.torch._distributed import Averaged, local_factor, processes
from lorsum.torch._gradient import FORMS
from lorsum.torch._groups import (
    check_rules,
    checked_others,
    checked_rule,
    groups_of,
    numbers_of,
    options_of,
    options_of_group,
    others_of,
    parts,
    refuse_without_adapters,
    rule_of,
    unused,
)
from lorsum.torch._join import attend
from lorsum.torch._others import Others, kind_of, named

__all__ = ["AdapterOptimizer"]


class AdapterOptimizer(torch.optim.Optimizer):
    """An optimizer that finds the LoRA adapters of a model by itself and steps them by a rule of :mod:`lorsum.optim`.

    The step is taken in the space of the matrix B·A, G being the gradient with respect to B·A: it is exactly
    ``rule.step(LowRank(B, A.T), G, state)``. A layer that multiplies B·A by s = α/r has G = s × the gradient with
    respect to its weight, so that a learning rate η moves that weight as s²η would without scaling.

    Parameters
    ----------
    model : torch.nn.Module, or list of dict
        What to train: its adapters (see :func:`lorsum.torch.adapters`) by the rule, all other parameters that require a
        gradient by ``others``. Dicts are parameter groups, of which ``"params"`` is a module or a list of modules,
        adapters and parameters; each becomes one group in ``param_groups``, whatever is in it.
    lr : float
        Learning rate η. For a schedule use :mod:`torch.optim.lr_scheduler`.
    others : rule, optional
        How biases, convolutions, heads and all else outside the adapters are trained: :class:`lorsum.optim.SGD` or
        :class:`lorsum.optim.AdamW`. Default: SGD, or AdamW where the rule is an AdamW, with the options that the
        group's rule has too: ``lr``, ``momentum``, ``weight_decay``, as in the paper's experiments. One that is given
        has a learning rate of its own, which schedulers move in proportion to the group's (see the notes).
    gradient : {"auto", "pairs", "dense"}
        What is kept of an adapter's gradient until the step: N token rows of S and X, N (d_in + d_out) numbers; their
        sum SᵀX, d_in · d_out numbers; "auto" what is smaller. Tokens without a gradient, such as padding, do not count.
        With "pairs" a large layer's backward pass is not slowed by the sum, which is a product as large as its own.
    overlap : bool
        Start an adapter's step as soon as its gradient is there, in a thread beside the rest of the backward pass. The
        results are the same: what clipping, unscaling, further backward passes or a new learning rate make invalid is
        computed again in ``step``, so that this is for loops without them. Several processes start in ``step``.
    process_group : torch.distributed.ProcessGroup, optional
        Over which gradients are averaged, as ``DistributedDataParallel`` averages ``.grad``; default: all processes,
        where torch.distributed is initialised. Within its ``join``, where processes run out of batches at different
        times, this is done in the backward pass; at the end all take weights and state of who trained longest.
    missing : {"skip", "error"}
        What a step does about an adapter that has no gradient, such as an expert that no token was routed to: leave it
        and its state as they are, as torch.optim does, or raise an error that names it.
    debug : bool
        Compare at every step with autograd's own adapter gradients, A.grad = c Bᵀ G and B.grad = c G Aᵀ, and name the
        adapter that disagrees. Without it this is done at steps 1, 2, 4, 8, …
    rng : None, int or numpy.random.Generator
        Source of the random factor that a momentum starts with; the same in all processes.
    **options
        Further options of the rule.

    Raises
    ------
    ValueError
        If the model has no trainable adapter, one whose gradient cannot be captured, or a part wrapped by
        ``DataParallel``; or if an option makes no sense.
    TypeError
        If parameters are given in place of their modules, or an option is not the rule's.
    RuntimeError
        In a step, naming the adapter: if it has ``.grad`` but its call never fired, if its shape or parameters have
        changed, or if its gradients were changed by other than one common factor.

    Attributes
    ----------
    adapters : list of Adapter
        What the rule trains.
    traffic : dict
        By adapter, what the last step moved between processes: "rows" of S and X, the "sum" SᵀX, or thin "products",
        and how many bytes each process sent. Empty in a single process.

    Notes
    -----
    ``clip_grad_norm_`` and ``GradScaler`` act on ``.grad``, which exists as always: the factor c that they multiply it
    with, negative in ascent, is found by comparing A.grad and B.grad with what the backward pass had left there, and G
    is multiplied by it.

    A group of ``param_groups`` has the options of the adapters' rule. Where it also has other parameters, what their
    rule does not share with these is in ``group["others"]``: ``lr`` there is theirs when the group's is ``beside_lr``,
    and half of that when the group's is half. Of a group without adapters the options are those of ``others``. A
    scheduler that cycles the momentum cycles SGD's and AdamW's β₁ alike. With a learning rate of zero the adapters stay
    as they are bit for bit.

    Model and optimizer are copied, or pickled, together: ``copy.deepcopy((model, optimizer))``. A copy of the optimizer
    alone has parameters of its own, as that of any optimizer of torch.optim; its first step is an error that says so.

    Gradients live as long as ``.grad`` does, until ``zero_grad``, the optimizer's or the module's.
    """

    Rule: type

    def __init__(
        self,
        model,
        lr,
        *,
        others=None,
        gradient="auto",
        overlap=False,
        process_group=None,
        missing="skip",
        debug=False,
        rng=0,
        **options,
    ):
        rule = checked_rule(self.Rule, lr, options)
        for name, value, choices in (("gradient", gradient, FORMS), ("missing", missing, ("skip", "error"))):
            if value not in choices:
                raise ValueError(f"`{name}` is {value!r}; it must be one of {', '.join(map(repr, choices))}.")
        default = optim.AdamW if isinstance(rule, optim.AdamW) else optim.SGD
        self._others = None if others is None else checked_others(others, rule)
        self._classes = {cls.__name__: cls for cls in (type(rule), default if others is None else type(others))}
        self._form = "rows" if isinstance(options.get("scale"), optim.KFAC) else gradient
        self.process_group, self.missing, self.overlap = process_group, missing, bool(overlap)
        self.seed = int(np.random.default_rng(rng).integers(2**52))
        self.debug = bool(debug)
        self._adapters: list = []  # by group
        self._names: dict = {}  # of the parameters outside the adapters
        self._copied = False
        self._begin()
        groups = groups_of(model)
        super().__init__(groups, {"rule": type(rule).__name__, **options_of(rule), "lr": lr})
        if not self._captures:
            refuse_without_adapters(model, groups)

    def _begin(self):
        """What is made of the groups and their adapters, and is no part of the optimizer's state."""
        self.traffic: dict = {}
        self._ahead = Ahead() if self.overlap else None
        self._captures: dict = {}  # by B
        self._group_of: dict = {}  # by B: the number of its group
        self._slots: dict = {}  # by B, those of B and A
        self._number_of: dict = {}  # by B: the adapter's, in order
        self._beside: list = []  # by group: its parameters outside the adapters
        self._rules: dict = {}  # by group number: the options that they were made of, and the two rules
        self._states: dict = {}  # by B: what its state's structure depends on, and the state
        self._other_steps: dict = {}  # by group
        self.averages_in_backward = False  # within a join of DistributedDataParallel
        attend(self)

    def add_param_group(self, param_group):
        """Add a group whose ``"params"`` are a module, an adapter, a parameter, or a list of these.

        The adapters in it are trained by the rule, all other parameters by ``others``; options that are given, such as
        the learning rate, hold for both.
        """
        found, rest = parts(param_group["params"])
        given = {key: value for key, value in param_group.items() if key != "params"}
        options = options_of_group(given, self.defaults, self._others, self._classes, found, rest)
        params = [p for adapter in found for p in (adapter.A, adapter.B)] + list(rest)
        super().add_param_group({"params": params, **options})
        group = self.param_groups[-1]
        for name in set(group) - set(options) - {"params"}:
            del group[name]  # defaults of the adapters' rule, which torch fills in
        self._names |= rest
        taken = {adapter.name for adapter in self.adapters}
        for adapter in found:
            adapter.name = unused(adapter.name, taken)
            taken.add(adapter.name)
        self._adapters.append(found)
        self._watch(len(self.param_groups) - 1)

    def _watch(self, number):
        """Capture the gradients of a group's adapters."""
        found = self._adapters[number]
        for adapter in found:
            capture = Capture(adapter, self._form, self.process_group)
            if self._ahead is not None:
                capture.listener = _calling(self, "_start")
            self._group_of[adapter.B], self._number_of[adapter.B] = number, len(self._captures)
            self._captures[adapter.B] = capture
            self._slots[adapter.B] = bridge.Slots(adapter.B, adapter.A)
        inside = {p for adapter in found for p in (adapter.A, adapter.B)}
        self._beside.append([p for p in self.param_groups[number]["params"] if p not in inside])

    def __getstate__(self):
        names = ("_others", "_classes", "_form", "process_group", "missing", "overlap", "seed", "debug", "_adapters")
        described = {name: getattr(self, name) for name in (*names, "_names")}
        return super().__getstate__() | described | {"_copied": True}

    def __setstate__(self, state):
        super().__setstate__(state)
        if "_adapters" in state:  # a copy; what is loaded has groups and their state alone
            self._begin()
            for number in range(len(self.param_groups)):
                self._watch(number)

    def __deepcopy__(self, memo):
        memo[id(self.process_group)] = self.process_group  # the processes are the same
        memo[id(self)] = other = type(self).__new__(type(self))
        other.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return other

    @property
    def adapters(self):
        """The adapters that are trained, in order."""
        return [capture.adapter for capture in self._captures.values()]

    def gradients(self):
        """The gradients that the next step will take, by adapter: a LowRank (Sᵀ, Xᵀ), or a dense tensor."""
        self._drop_cleared()
        return {
            capture.adapter.name: capture.multiplied(capture.common_factor())
            for capture in self._captures.values()
            if capture.gradient and capture.has_gradient()
        }

    def gradient_nbytes(self):
        """Bytes that are held for each adapter's gradient beyond ``.grad``, and a copy of it that changes show in."""
        self._drop_cleared()
        return {capture.adapter.name: capture.gradient.nbytes for capture in self._captures.values()}

    def _drop_cleared(self):
        for capture in self._captures.values():
            capture.drop_cleared()

    def zero_grad(self, set_to_none=True):
        """Forget the gradients, the captured ones too."""
        for capture in self._captures.values():
            capture.clear()
        super().zero_grad(set_to_none)

    def synchronize(self):
        """Wait until the steps that ``overlap`` has begun are computed, as before a process forks."""
        if self._ahead is not None:
            self._ahead.wait()

    @torch.no_grad()
    def step(self, closure=None):
        """Take a step.

        Adapters and parameters without a gradient stay as they are, and so do their states (see ``missing``).

        Parameters
        ----------
        closure : callable, optional
            Clears the gradients, computes the loss and its gradients, and returns the loss.

        Returns
        -------
        loss
            What the closure returned, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients = self._gradients()
        moved = []  # nothing changes before all have been computed
        for number, group in enumerate(self.param_groups):
            rule, others = self._rules_of(number, group)
            inside = [self._captures[adapter.B] for adapter in self._adapters[number]]
            moved += [self._step_adapter(rule, c, gradients) for c in inside if c.adapter.B in gradients.factors]
            beside = [p for p in self._beside[number] if p.grad is not None]
            moved += self._step_others(number, others, beside) if beside else []
        if not moved and not any(adapter.trained for adapter in self.adapters):
            raise RuntimeError(f"all adapters of the optimizer are frozen: {', '.join(a.name for a in self.adapters)}.")
        if not moved and self._copied:
            raise RuntimeError(
                "a copy of an optimizer has no gradient in its first step: copied alone, it has parameters of its own, "
                "which no model uses. Copy model and optimizer together, `copy.deepcopy((model, optimizer))`."
            )
        self._copied = False
        self._write(moved)
        self.traffic = gradients.traffic
        return loss

    def _gradients(self):
        """The gradients of the adapters that have one; what must not be missing is an error before anything changes."""
        captures = [capture for capture in self._captures.values() if capture.adapter.trained]
        for capture in captures:
            capture.adapter.check_unchanged()
        if captures and processes(self.process_group) > 1 and not self.averages_in_backward:
            return Averaged(captures, self.process_group, self.seed, self.missing)
        present = [capture for capture in captures if capture.has_gradient(self.missing)]
        return Captured(present, local_factor) if self.averages_in_backward else Captured(present)

    def _step_adapter(self, rule, capture, gradients):
        adapter = capture.adapter
        with named(f"`{adapter.name}`"):
            slots = self._slots[adapter.B].current()
            W, G = bridge.matrix_in(slots), gradients.gradient(capture, rule)
            held, c = self._held(rule, adapter.B, W), gradients.factors[adapter.B]
            checked = self.debug or (capture.checked and gradients.unchecked)
            if checked and (weights := capture.weights_of_grad()) is not None:
                check_against_autograd(adapter, weights, G, capture.gradient.rounding() * abs(c))
            following = held.state.count + 2
            capture.checked = self.debug or following & (following - 1) == 0  # steps 1, 2, 4, 8, …
            done = None if self._ahead is None else self._ahead.take(rule, capture, c, W, held)
            W, state = stepped(rule, W, G, held.state) if done is None else done
        return (slots, (W.U, W.V.T), held, state) if rule.lr else ((), (), held, state)

    @torch.no_grad()
    def _start(self, capture):
        """Begin the step of an adapter, in the backward pass."""
        if processes(self.process_group) > 1:
            return  # the gradient is not known before that of the other processes is
        adapter, number = capture.adapter, self._group_of[capture.adapter.B]
        with named(f"`{adapter.name}`"):
            rule, _ = self._rules_of(number, self.param_groups[number])
            assert self._ahead is not None
            W = bridge.matrix_in(self._slots[adapter.B].current())
            self._ahead.start(rule, capture, W, self._held(rule, adapter.B, W))

    def _step_others(self, number, rule, parameters):
        others = self._other_steps.get(number)
        if others is None or not others.are(rule, parameters, self.state):
            others = self._other_steps[number] = Others(rule, parameters, self.state, self._names)
        return others.stepped(rule)

    def _held(self, rule, p, W):
        """The state of a parameter; what is not there yet as ``rule.init`` has it."""
        was, held = self._states.get(p, (None, None))
        if was != kind_of(rule) or not held.is_of(self.state[p]):
            rng = np.random.default_rng([self.seed, self._number_of[p]])
            held = bridge.Held(rule.init(W, rng=rng), self.state[p])
            self._states[p] = kind_of(rule), held
            A = self._captures[p].adapter.A  # whose entry tells those who save a state by parameters that it has one
            self.state[A]["step"] = self.state[p]["step"]
        return held

    @staticmethod
    def _write(moved):
        for slots, values, held, state in moved:
            for slot, value in zip(slots, values, strict=True):
                slot.put(value)
            held.update(state)

    def _rules_of(self, number, group):
        """The rules of a group's adapters and of its other parameters, with the options that it has now."""
        options = numbers_of(group)
        if self._rules.get(number, (None,))[0] != options:
            rule = rule_of(self._classes, options)
            self._rules[number] = options, (rule, others_of(self._classes, options) if "others" in options else rule)
        return self._rules[number][1]

    def state_dict(self):
        """The state as tensors and numbers, which ``torch.load`` takes with ``weights_only=True``."""
        state = super().state_dict()
        for group in state["param_groups"]:
            if "scale" in group:
                group["scale"] = repr(group["scale"])
        return state

    @torch.no_grad()
    def load_state_dict(self, state_dict):
        """Go on where a saved optimizer of the same model and rules stood: the next steps are the same bit for bit."""
        taken: list = []

        def take(_, state):
            check_rules(state["param_groups"], self.param_groups)
            taken.append(state)

        handle = self.register_load_state_dict_pre_hook(take)  # after those of the user, who may change the state
        scales = [group.get("scale") for group in self.param_groups]
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        for group, scale in zip(self.param_groups, scales, strict=True):
            if "scale" in group:
                group["scale"] = scale
        # torch casts what it loads to the parameter's dtype, but a momentum of half precision is kept in single
        (state,) = taken
        parameters = [p for group in self.param_groups for p in group["params"]]
        places = [place for group in state["param_groups"] for place in group["params"]]
        for place, p in zip(places, parameters, strict=True):
            for name, value in state["state"].get(place, {}).items():
                self.state[p][name] = value.clone() if name == "step" else value.clone().to(p.device)


def _calling(optimizer, method):
    """A listener that keeps no optimizer alive."""
    optimizer = weakref.ref(optimizer)
    return lambda capture: getattr(optimizer(), method)(capture)
