"""The optimizer around a rule: parameter groups, state and steps; the mathematics is the rule's."""

import dataclasses
import itertools
import weakref

import numpy as np
import torch

from lorsum import optim
from lorsum.torch import _bridge as bridge
from lorsum.torch._adapters import adapters
from lorsum.torch._ahead import Ahead, stepped
from lorsum.torch._capture import Capture, Captured
from lorsum.torch._check import check_against_autograd
from lorsum.torch._distributed import Averaged, processes
from lorsum.torch._gradient import FORMS
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
        gradient by ``others``. Dicts are parameter groups, of which ``"params"`` is a module or a list of modules and
        parameters.
    lr : float
        Learning rate η. For a schedule use :mod:`torch.optim.lr_scheduler`.
    others : rule, optional
        How biases, convolutions, heads and all else outside the adapters are trained: :class:`lorsum.optim.SGD` or
        :class:`lorsum.optim.AdamW`, with a learning rate of its own; schedulers act on both. Default: SGD with ``lr``
        and ``momentum``, as in the paper's experiments; AdamW where the rule is an AdamW.
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
        where torch.distributed is initialised.
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
    RuntimeError
        In a step, naming the adapter: if its gradient is missing because its call never fires or its backward pass was
        not run, if its shape or parameters have changed, or if its gradients were changed by other than one common
        factor.

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
        debug=False,
        rng=0,
        **options,
    ):
        if callable(lr):
            raise TypeError("`lr` is a callable; pass a number, and a scheduler of torch.optim.lr_scheduler.")
        if gradient not in FORMS:
            raise ValueError(f"`gradient` is {gradient!r}; it must be one of {', '.join(map(repr, FORMS))}.")
        rule = self.Rule(lr=lr, **options)
        self._others = _others_beside(rule) if others is None else _checked(others)
        self._form = "rows" if isinstance(options.get("scale"), optim.KFAC) else gradient
        self.process_group, self.traffic = process_group, {}
        self.seed = int(np.random.default_rng(rng).integers(2**52))
        self.debug = bool(debug)
        self._classes = {type(rule).__name__: type(rule), type(self._others).__name__: type(self._others)}
        self._ahead = Ahead() if overlap else None
        self._group_of: dict = {}  # by parameter: the number of its group
        self._captures: dict = {}  # by B
        self._slots: dict = {}  # by B, those of B and A
        self._number_of: dict = {}  # by B: the adapter's, in order
        self._rules: dict = {}  # by group number: the options that it was made of, and the rule
        self._states: dict = {}  # by B: what its state's structure depends on, and the state
        self._other_steps: dict = {}  # by group
        self._names: dict = {}  # of the parameters outside the adapters
        parts = [model] if isinstance(model, torch.nn.Module) else list(model)
        groups = [part if isinstance(part, dict) else {"params": part} for part in parts]
        super().__init__(groups, {"rule": type(rule).__name__, **_options(rule)})
        if not self._captures:
            raise ValueError(
                f"`model` ({type(model).__name__}) has no LoRA pair: no trainable lora_A with its lora_B. Put layers "
                "in with lorsum.torch.add_lora or peft.get_peft_model."
            )

    def add_param_group(self, param_group):
        """Add a group whose ``"params"`` are a module, a parameter, or a list of these.

        The adapters in its modules become one group, trained by the rule with the options given; all other parameters
        another one, trained by ``others`` (the learning rate of the group is theirs too).
        """
        found, rest = _split(param_group["params"])
        given = {key: value for key, value in param_group.items() if key != "params"}
        if found:
            self._add_group([p for adapter in found for p in (adapter.A, adapter.B)], {**self.defaults, **given})
            for adapter in found:
                adapter.name = _unused(adapter.name, {other.name for other in self.adapters})
                capture = Capture(adapter, self._form, self.process_group)
                if self._ahead is not None:
                    capture.listener = _calling(self, "_start")
                self._number_of[adapter.B] = len(self._captures)
                self._captures[adapter.B] = capture
                self._slots[adapter.B] = bridge.Slots(adapter.B, adapter.A)
        if rest:
            self._names.update((p, name) for name, p in rest)
            self._add_group(
                [p for _, p in rest], {"rule": type(self._others).__name__, **_options(self._others), **given}
            )

    def _add_group(self, params, options):
        _made(self._classes, options)
        super().add_param_group({"params": params, **options})
        for p in params:
            self._group_of[p] = len(self.param_groups) - 1
        group = self.param_groups[-1]
        for name in set(group) - set(options) - {"params"}:
            del group[name]  # defaults of the adapters' rule, which torch fills in

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
            if capture.gradient
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
            rule = self._rule(number, group)
            inside = [self._captures[p] for p in group["params"] if p in self._captures]
            moved += [self._step_adapter(rule, c, gradients) for c in inside if c.adapter.trained]
            if not inside:
                with_gradient = [p for p in group["params"] if p.grad is not None]
                moved += self._step_others(number, rule, with_gradient) if with_gradient else []
        self._write(moved)
        self.traffic = gradients.traffic
        return loss

    def _gradients(self):
        """The gradients of all adapters; what is missing is an error here, before anything has changed."""
        captures = [capture for capture in self._captures.values() if capture.adapter.trained]
        if not captures:
            raise RuntimeError(f"all adapters of the optimizer are frozen: {', '.join(a.name for a in self.adapters)}.")
        for capture in captures:
            capture.adapter.check_unchanged()
            capture.check_complete()
        if processes(self.process_group) > 1:
            return Averaged(captures, self.process_group, self.seed)
        return Captured(captures)

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
        return slots, (W.U, W.V.T), held, state

    @torch.no_grad()
    def _start(self, capture):
        """Begin the step of an adapter, in the backward pass."""
        if processes(self.process_group) > 1:
            return  # the gradient is not known before that of the other processes is
        adapter, number = capture.adapter, self._group_of[capture.adapter.B]
        with named(f"`{adapter.name}`"):
            rule = self._rule(number, self.param_groups[number])
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
        return held

    @staticmethod
    def _write(moved):
        for slots, values, held, state in moved:
            for slot, value in zip(slots, values, strict=True):
                slot.put(value)
            held.update(state)

    def _rule(self, number, group):
        """The rule of a group, with the options that it has now."""
        options = {key: value for key, value in group.items() if key != "params"}
        if self._rules.get(number, (None,))[0] != options:
            self._rules[number] = options, _made(self._classes, options)
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
        saved, now = state_dict["param_groups"], self.param_groups
        for number, (old, new) in enumerate(zip(saved, now, strict=False)):
            for name in ("rule", "scale"):
                if str(old.get(name)) != str(new.get(name)):
                    raise ValueError(f"`{name}` of group {number} was {old.get(name)} when saved, now {new.get(name)}.")
        scales = [group.get("scale") for group in now]
        super().load_state_dict(state_dict)
        for group, scale in zip(self.param_groups, scales, strict=True):
            if "scale" in group:
                group["scale"] = scale
        # torch casts what it loads to the parameter's dtype, but a momentum of half precision is kept in single
        parameters = [p for group in self.param_groups for p in group["params"]]
        places = [place for group in saved for place in group["params"]]
        for place, p in zip(places, parameters, strict=True):
            for name, value in state_dict["state"].get(place, {}).items():
                self.state[p][name] = value.clone() if name == "step" else value.clone().to(p.device)


def _options(rule):
    return {field.name: getattr(rule, field.name) for field in dataclasses.fields(rule)}


def _made(classes, options):
    """The rule that a group's options describe."""
    cls = classes[options["rule"]]
    given = {field.name: options[field.name] for field in dataclasses.fields(cls) if field.name in options}
    return cls(**{name: value.item() if isinstance(value, torch.Tensor) else value for name, value in given.items()})


def _others_beside(rule):
    """SGD or AdamW with the options that they have in common with the adapters' rule."""
    cls = optim.AdamW if isinstance(rule, optim.AdamW) else optim.SGD
    return cls(**{name: value for name, value in _options(rule).items() if name in cls.__dataclass_fields__})


def _checked(others):
    if not isinstance(others, (optim.SGD, optim.AdamW)):
        raise TypeError(f"`others` is {others!r}; lorsum.optim.SGD(lr=…) or lorsum.optim.AdamW(lr=…) is needed.")
    if callable(others.lr):
        raise TypeError("`others` has a callable as its `lr`; pass a number, and a scheduler.")
    return others


def _split(params):
    """The adapters in what a group's ``"params"`` hold, and the parameters beside them, with their names."""
    items = [params] if isinstance(params, (torch.nn.Module, torch.Tensor)) else list(params)
    found: list = []
    rest: list = []
    for item in items:
        if isinstance(item, torch.nn.Module):
            inside = adapters(item)
            taken = {p for adapter in inside for p in (adapter.A, adapter.B)}
            found += inside
            rest += [(name, p) for name, p in item.named_parameters() if p.requires_grad and p not in taken]
        else:
            rest.append((f"a parameter of shape {tuple(getattr(item, 'shape', ()))}", item))
    return found, rest


def _unused(name, taken):
    """The name, numbered where the modules of several groups have it."""
    numbered = (name if i == 1 else f"{name} ({i})" for i in itertools.count(1))
    return next(candidate for candidate in numbered if candidate not in taken)


def _calling(optimizer, method):
    """A listener that keeps no optimizer alive."""
    optimizer = weakref.ref(optimizer)
    return lambda capture: getattr(optimizer(), method)(capture)
