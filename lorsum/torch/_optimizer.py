"""The optimizer around a rule: parameter groups, state and steps; the mathematics is the rule's.

From a call of an adapter's layer to its new weights::

    in the loop          what happens                                               where
    ───────────────────  ─────────────────────────────────────────────────────────  ───────────────────────────────────
    model(x)             lora_A's input X is kept, a node waits behind lora_B       _hooks
    loss.backward()      the node gets S, the gradient of lora_B's output;          _hooks
                         S and X are staged, as pairs or as their sum SᵀX           _capture, _gradient
      …accumulates       autograd has added to B.grad: what is staged counts        _capture
                         (overlap=True: a thread begins the step)                   _overlap
    clip_grad_norm_, …   ``.grad`` is multiplied by c: nothing is noticed yet
    optimizer.step()     1. every gradient: c is found by a look at ``.grad``       _capture, _common_factor
                            (several processes: and the mean of G over them)        _distributed
                         2. every step: rule.step(W, c G, state), in arrays         _trained_adapter, _arrays
                            (all other parameters: another rule)                    _dense_params
                         3. all is written: an error before has changed nothing     _step
    optimizer.zero_grad  ``.grad`` and what was captured are forgotten              _capture

Several backward passes before a step add up as ``.grad`` does; a backward pass that leaves ``.grad`` alone leaves
nothing; ``model.zero_grad()`` is seen at the next call. Within DDP's ``join`` the mean is taken at the end of the
backward pass (``_join``).
"""

import copy
import functools
from collections.abc import Callable, Iterable
from concurrent import futures
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from lorsum import optim
from lorsum.lowrank import LowRank
from lorsum.torch._adapters import Adapter
from lorsum.torch._capture import Capture, LocalGradients
from lorsum.torch._dense_params import DenseParameters
from lorsum.torch._distributed import MeanGradients, Traffic, local_factor, processes
from lorsum.torch._gradient import Form, Missing
from lorsum.torch._groups import Group, groups_of, parts, refuse_without_adapters, unused
from lorsum.torch._hooks import while_alive
from lorsum.torch._join import attend
from lorsum.torch._options import (
    RuleClasses,
    check_rules,
    checked_others,
    checked_rule,
    group_options,
    is_plain,
    options_of,
)
from lorsum.torch._trained_adapter import TrainedAdapter
from lorsum.typing import RNG, Scalar


class AdapterOptimizer(torch.optim.Optimizer):
    """An optimizer that finds the LoRA adapters of a model by itself and steps them by a rule of :mod:`lorsum.optim`.

    The step is taken in the space of the matrix B·A, G being the gradient with respect to B·A: it is exactly
    ``rule.step(LowRank(B, A.T), G, state)``. A layer that multiplies B·A by s = α/r has G = s × the gradient with
    respect to its weight, so that a learning rate η moves that weight as s²η would without scaling.

    A subclass names its rule, which may be one of your own (see :mod:`lorsum.optim`): ``class MyOptimizer(
    AdapterOptimizer): Rule = MyRule``.

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
        :class:`lorsum.optim.AdamW`. Default: SGD, or AdamW where the rule has ``betas``, with the options that the
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
        model: nn.Module | Iterable[Any],
        lr: Scalar,
        *,
        others: optim.Rule | None = None,
        gradient: Form = "auto",
        overlap: bool = False,
        process_group: Any = None,
        missing: Missing = "skip",
        debug: bool = False,
        rng: RNG = 0,
        **options: Any,
    ):
        rule = checked_rule(self.Rule, lr, options)
        for name, value, type_ in (("gradient", gradient, Form), ("missing", missing, Missing)):
            if value not in (choices := get_args(type_)):
                raise ValueError(f"`{name}` is {value!r}; it must be one of {', '.join(map(repr, choices))}.")
        default = optim.AdamW if "betas" in options_of(rule) else optim.SGD
        self._others = None if others is None else checked_others(others, rule)
        self._classes = RuleClasses(type(rule), default if others is None else type(others))
        self._form, self.missing, self.overlap, self.debug = gradient, missing, bool(overlap), bool(debug)
        self.process_group = process_group
        self.seed = int(np.random.default_rng(rng).integers(2**52))
        self._copied = False
        self._begin()
        groups = groups_of(model)
        super().__init__(groups, {"rule": type(rule).__name__, **options_of(rule), "lr": lr})
        if not self._adapters:
            refuse_without_adapters(model, groups)

    def _begin(self) -> None:
        """What is made of the groups and their adapters, and is no part of the optimizer's state."""
        self.traffic: dict[str, Traffic] = {}
        self._adapters: list[TrainedAdapter] = []
        self._groups: list[Group] = []
        self._thread = futures.ThreadPoolExecutor(1, "lorsum") if self.overlap else None  # one: step after step
        self.averages_in_backward = False  # within a join of DistributedDataParallel
        attend(self)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group whose ``"params"`` are a module, an adapter, a parameter, or a list of these.

        The adapters in it are trained by the rule, all other parameters by ``others``; options that are given, such as
        the learning rate, hold for both.
        """
        found, rest = parts(param_group["params"])
        given = {key: value for key, value in param_group.items() if key != "params"}
        options = group_options(given, self.defaults, self._others, self._classes, bool(found), rest)
        params = [p for adapter in found for p in (adapter.A, adapter.B)] + list(rest)
        super().add_param_group({"params": params, **options})
        group = self.param_groups[-1]
        for name in set(group) - set(options) - {"params"}:
            del group[name]  # defaults of the adapters' rule, which torch fills in
        taken = {adapter.name for adapter in self.adapters}
        for adapter in found:
            adapter.name = unused(adapter.name, taken)
            taken.add(adapter.name)
        self._train(found, rest)

    def _train(self, found: list[Adapter], rest: dict[Tensor, str]) -> None:
        """Capture the gradients of the next group's adapters, and note its other parameters."""
        number, group = len(self._groups), Group(len(found) > 0, DenseParameters(rest))
        rule, _ = group.rules(self._classes, self.param_groups[number])
        for adapter in found:
            index = len(self._adapters)
            form = "rows" if optim.reads(rule, adapter.rank).what == "rows" else self._form
            begin = functools.partial(while_alive(self._begin_step), index) if self.overlap else None
            capture = Capture(adapter, form, self.process_group, begin)
            group.adapters.append(TrainedAdapter(capture, [self.seed, index], number))
            self._adapters.append(group.adapters[-1])
        self._groups.append(group)

    def __getstate__(self) -> dict[str, Any]:
        names = ("_others", "_classes", "_form", "process_group", "missing", "overlap", "seed", "debug")
        described = {name: getattr(self, name) for name in names}
        described["_parts"] = [([x.adapter for x in group.adapters], group.dense.names) for group in self._groups]
        return super().__getstate__() | described | {"_copied": True}

    def __setstate__(self, state: dict[str, Any]) -> None:
        groups = state.pop("_parts", None)
        super().__setstate__(state)
        if groups is not None:  # a copy; what is loaded has groups and their state alone
            self._begin()
            for found, rest in groups:
                self._train(found, rest)

    def __deepcopy__(self, memo: dict[int, Any]) -> "AdapterOptimizer":
        memo[id(self.process_group)] = self.process_group  # the processes are the same
        memo[id(self)] = other = type(self).__new__(type(self))
        other.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return other

    @property
    def adapters(self) -> list[Adapter]:
        """The adapters that are trained, in order."""
        return [trained.adapter for trained in self._adapters]

    @property
    def _captures(self) -> list[Capture]:
        return [trained.capture for trained in self._adapters]

    def gradients(self) -> dict[str, LowRank | Tensor]:
        """The gradients that the next step will take, by adapter: a LowRank (Sᵀ, Xᵀ), or a dense tensor."""
        for capture in self._captures:
            capture.drop_cleared()
        return {
            capture.adapter.name: capture.multiplied(capture.common_factor())
            for capture in self._captures
            if capture.gradient and capture.has_gradient()
        }

    def gradient_nbytes(self) -> dict[str, int]:
        """Bytes that are held for each adapter's gradient beyond ``.grad``, and a copy of it that changes show in."""
        for capture in self._captures:
            capture.drop_cleared()
        return {capture.adapter.name: capture.gradient.nbytes for capture in self._captures}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, the captured ones too."""
        for capture in self._captures:
            capture.clear()
        super().zero_grad(set_to_none)

    def synchronize(self) -> None:
        """Wait until the steps that ``overlap`` has begun are computed, as before a process forks."""
        futures.wait([trained.begun.future for trained in self._adapters if trained.begun is not None])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
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
        updates = []  # nothing changes before all have been computed
        for group, options in zip(self._groups, self.param_groups, strict=True):
            rule, others = group.rules(self._classes, options)
            present = [trained for trained in group.adapters if trained.adapter.B in gradients.factors]
            updates += [trained.update(rule, gradients, self.state, self.debug) for trained in present]
            updates += group.dense.updates(others, self.state)
        if not updates:
            self._refuse_nothing()
        self._copied = False
        for update in updates:
            update.write()
        self.traffic = gradients.traffic
        return loss

    def _gradients(self) -> LocalGradients | MeanGradients:
        """The gradients of the adapters that have one; what must not be missing is an error before anything changes."""
        captures = [capture for capture in self._captures if capture.adapter.trained]
        for capture in captures:
            capture.adapter.check_unchanged()
        if captures and processes(self.process_group) > 1 and not self.averages_in_backward:
            return MeanGradients(captures, self.process_group, self.seed, self.missing)
        present = [capture for capture in captures if capture.has_gradient(self.missing)]
        return LocalGradients(present, local_factor) if self.averages_in_backward else LocalGradients(present)

    def _refuse_nothing(self) -> None:
        """An error where a step without any gradient is a mistake."""
        if not any(adapter.trained for adapter in self.adapters):
            raise RuntimeError(f"all adapters of the optimizer are frozen: {', '.join(a.name for a in self.adapters)}.")
        if self._copied:
            raise RuntimeError(
                "a copy of an optimizer has no gradient in its first step: copied alone, it has parameters of its own, "
                "which no model uses. Copy model and optimizer together, `copy.deepcopy((model, optimizer))`."
            )

    @torch.no_grad()
    def _begin_step(self, index: int) -> None:
        """Let the thread compute the step of an adapter whose gradient has changed, in the backward pass."""
        if processes(self.process_group) > 1:
            return  # the gradient is not known before that of the other processes is
        assert self._thread is not None
        trained = self._adapters[index]
        rule, _ = self._groups[trained.group].rules(self._classes, self.param_groups[trained.group])
        trained.begin(rule, self.state, self._thread)

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors and numbers, which ``torch.load`` takes with ``weights_only=True``."""
        state = super().state_dict()
        for group in state["param_groups"]:
            group |= {name: repr(value) for name, value in group.items() if not is_plain(value)}
        return state

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a saved optimizer of the same model and rules stood: the next steps are the same bit for bit."""
        taken: list[dict[str, Any]] = []

        def take(_: Any, state: dict[str, Any]) -> None:
            check_rules(state["param_groups"], self.param_groups)
            taken.append(state)

        handle = self.register_load_state_dict_pre_hook(take)  # after those of the user, who may change the state
        not_saved = [
            {k: v for k, v in group.items() if k != "params" and not is_plain(v)} for group in self.param_groups
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        for group, options in zip(self.param_groups, not_saved, strict=True):
            group |= options
        # torch casts what it loads to the parameter's dtype, but a momentum of half precision is kept in single
        (state,) = taken
        parameters = [p for group in self.param_groups for p in group["params"]]
        places = [place for group in state["param_groups"] for place in group["params"]]
        for place, p in zip(places, parameters, strict=True):
            for name, value in state["state"].get(place, {}).items():
                self.state[p][name] = value.clone() if name == "step" else value.clone().to(p.device)
