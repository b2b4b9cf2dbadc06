"""The page, written from the records: the targets, and for each model the time and the memory of a step."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from analysis.benchmarks.recording import provenance
from analysis.benchmarks.training_cost.optimizers import AGAIN, BASELINE
from analysis.experiments.tables import duration, markdown, size

__all__ = ["TARGETS", "Overhead", "Target", "overhead", "page"]

OVERLAP = "{}, overlap"
TITLES = {"lenet5": "LeNet5", "minilm": "MiniLM"}


class Target(NamedTuple):
    """What an optimizer is to cost at most: "state" in multiples of the adapters, or "overhead"."""

    kind: str
    model: str
    optimizer: str
    limit: float


TARGETS = [
    *(Target("state", model, f"OPLoRA K={K}", 2.0) for model in TITLES for K in (1, 8)),
    Target("overhead", "lenet5", "OPLoRA K=1", 0.10),
    Target("overhead", "lenet5", "OPLoRA K=8", 0.15),
    Target("overhead", "minilm", "OPLoRA K=1", 0.05),
    Target("overhead", "minilm", "OPLoRA K=8", 0.05),
]


class Overhead(NamedTuple):
    """Time beyond AdamW's, over AdamW's forward and backward: medians of the rounds, and the middle half of them."""

    total: float
    hooks: float
    step: float
    low: float
    high: float


def overhead(seconds: dict[str, ArrayLike], name: str) -> Overhead:
    """The overhead of an optimizer, round by round beside AdamW in the same round."""
    theirs, ours = np.array(seconds[BASELINE]), np.array(seconds[name])
    beyond = (ours - theirs) / theirs[:, :1]
    total = beyond.sum(axis=1)
    parts = np.median(beyond, axis=0)
    return Overhead(*map(float, (np.median(total), *parts, *np.quantile(total, (0.25, 0.75)))))


def page(records: list[dict]) -> str:
    """The page as Markdown."""
    by_model: dict[str, dict] = {}
    for record in records:
        by_model.setdefault(record["config"]["model"], {})[record["config"]["task"]] = record
    where = provenance("python -m analysis training-cost", records[-1]["environment"])
    parts = [f"# What a training step costs\n\n{where}\n\n{_METHOD}\n", f"## Targets\n\n{_targets(by_model)}"]
    for model, tasks in by_model.items():
        title = TITLES.get(model, model)
        if "time" in tasks:
            parts.append(f"## {title}: time\n\n{_setup(tasks['time'])}\n\n{_times(tasks['time'])}")
        if "memory" in tasks:
            parts.append(f"## {title}: memory\n\n{_memory(tasks['memory'])}")
    return "\n".join(parts)


_METHOD = """\
Every optimizer trains a copy of the same model on the same batches, on one thread. What is outside the adapters is
trained by AdamW with all of them, and nothing is clipped, so that rows differ in what trains the adapters. AdamW is
`torch.optim`'s; LoRA+ and Riemannian AdamW are what `create_loraplus_optimizer` and `create_riemannian_optimizer` of
`peft.optimizers` make of it; all others are of `lorsum.torch`; OPLoRA's momentum has the adapter's rank. "pairs" and
"dense" are `gradient=`, which is "auto" elsewhere; "overlap" is `overlap=True`.

**Time.** Optimizers take turns step by step, in an order that differs from round to round. The overhead of a round is
(forward, backward and step − those of AdamW in that round) / (forward and backward with AdamW, which has no hooks);
given are medians over the rounds, and the middle half of them. Its parts: what forward and backward take longer,
which is the hooks that capture the gradients, and what the step takes longer. "AdamW again" is another copy of the
baseline: what it differs by is noise. The time is the processor's, of all threads, which on a quiet machine is that
of the wall clock where there is one thread; where other work takes turns with the steps, the wall clock errs either
way. With `overlap` an adapter's step runs in a second thread beside the rest of the backward pass. What that saves is
seen in the last column alone, and only where a second core is free.

**Memory.** The state is what the optimizer keeps for the adapters, over the size of their parameters; counts of
steps, of some bytes, are left out. Captured is what it holds of the gradients beyond `.grad` when the backward pass
has ended. Then the most that is held at a time in forward and backward, and in the step, beyond what is there before
both, when there are no gradients: activations, gradients, temporaries. It is the sum of two peaks: what PyTorch
allocates, of which its profiler reports every allocation, those inside of operations too; and what Python and NumPy
do, by `tracemalloc`. Neither sees what compiled kernels take for their small matrices. Both are tested on a tensor
and an array of known size. The peak beyond model and data is the larger of the two, and all the optimizer's state,
that of the head included."""


def _targets(by_model):
    rows = [_outcome(target, by_model) for target in TARGETS]
    return markdown(["what", "target", "measured", "", "note"], rows)


def _outcome(target, by_model):
    kind, model, optimizer, limit = target
    what = f"{optimizer} on {TITLES[model]}: " + ("state / adapters" if kind == "state" else "overhead of a step")
    wanted = f"≤ {limit:g} ×, as AdamW" if kind == "state" else f"≤ {limit:.0%}"
    record = by_model.get(model, {}).get("memory" if kind == "state" else "time")
    if record is None or optimizer not in record["config"]["optimizers"]:
        return [what, wanted, "–", "not measured", ""]
    measure = _state_outcome if kind == "state" else _overhead_outcome
    value, text, note = measure(record["results"], optimizer)
    return [what, wanted, text, "pass" if value <= limit else "**miss**", note]


def _state_outcome(results, optimizer):
    ours, theirs = (_multiple(results, name) for name in (optimizer, BASELINE))
    return ours, f"{ours:.3g} ×", f"with the adapters {ours + 1:.3g} ×, with AdamW {theirs + 1:.3g} ×"


def _overhead_outcome(results, optimizer):
    by_processor, by_wall = results["processor"], results["seconds"]
    ours, overlapped = overhead(by_processor, optimizer), OVERLAP.format(optimizer)
    note = f"hooks {ours.hooks:.1%}, step {ours.step:.1%}; by the wall clock {overhead(by_wall, optimizer).total:.1%}"
    if overlapped in by_wall:
        note += f", with overlap {overhead(by_wall, overlapped).total:.1%}"
    if AGAIN in by_processor:
        note += f"; AdamW again {overhead(by_processor, AGAIN).total:.1%}"
    return ours.total, f"{ours.total:.1%}", note


def _setup(record):
    config, results = record["config"], record["results"]
    length = f" of {config['length']} tokens" if "length" in config else ""
    by_processor, by_wall = (np.sum(results[clock][BASELINE]) for clock in ("processor", "seconds"))
    return (
        f"{results['parameters']:,} parameters, {results['trained']:,} of them trained, {results['lora']:,} in "
        f"adapters; batches of {config['batch']}{length}, single precision; {config['rounds']} rounds. "
        f"Of AdamW's wall time {by_processor / by_wall:.0%} was the processor's: the rest other work took."
    )


def _times(record):
    by_processor, by_wall = (record["results"][clock] for clock in ("processor", "seconds"))
    rows = []
    for name, pairs in by_processor.items():
        gradients, step = np.median(np.array(pairs), axis=0)
        row = [name, duration(gradients), duration(step)]
        if name != BASELINE:
            ours = overhead(by_processor, name)
            row += [f"{part:.1%}" for part in ours[:3]] + [f"{ours.low:.1%} … {ours.high:.1%}"]
            row.append(f"{overhead(by_wall, name).total:.1%}")
        rows.append(row + ["–"] * (8 - len(row)))
    header = ["optimizer", "forward + backward", "step", "overhead", "of it the hooks", "of it the step", "middle half",
              "by the wall clock"]  # fmt: skip
    return markdown(header, rows)


def _memory(record):
    results = record["results"]
    rows = []
    for name in record["config"]["optimizers"]:
        tensors, arrays, state = (results[entry][name] for entry in ("tensors", "arrays", "state"))
        peaks = [sum(parts) for parts in zip(tensors, arrays, strict=True)]
        sizes = (results["captured"][name], *peaks, arrays[1], state, max(peaks) + state)
        rows.append([name, f"{_multiple(results, name):.3g}", *map(size, sizes)])
    header = ["optimizer", "state / adapters", "captured", "forward + backward", "step", "of it NumPy", "all state",
              "peak"]  # fmt: skip
    said = f"The adapters' {results['lora']:,} parameters take {size(_lora_nbytes(results))}.\n\n"
    return said + markdown(header, rows)


def _multiple(results, name):
    """State that is kept for the adapters, over the size of their parameters."""
    return results["lora_state"][name] / _lora_nbytes(results)


def _lora_nbytes(results):
    return 4 * results["lora"]
