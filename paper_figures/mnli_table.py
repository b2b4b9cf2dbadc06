"""The numbers of the MNLI figure, and sentences that are computed from the records."""

import numpy as np

from analysis.experiments.records import Record
from analysis.experiments.tables import Cell, Table, mean_std, number, words
from paper_figures.curves import methods
from paper_figures.published import published

__all__ = ["table"]

_LAST_STEPS = 100


def table(records: list[Record]) -> Table:
    compared = {method.name: method for method in methods(records)}
    pairs = records[0]["config"]["evaluated_last"]
    rows = [_row(method, pairs) for method in compared.values()]
    sentences = [_of_best(compared, pairs), *_of_svdlora(compared), _of_rates(compared), _of_time(compared)]
    return Table("MNLI: a pretrained transformer with adapters, after the last step", rows, sentences)


def _papers_lr(method):
    """What the paper's authors published for RoBERTa; the other methods' are not known."""
    return published(method.config, "MNLI", "learning rate")


def _row(method, pairs):
    papers = _papers_lr(method)
    return {
        "method": words(method.name),
        "η": number(method.config["lr"]),
        "paper's η (RoBERTa)": Cell("", {"": ""}) if papers is None else number(papers.value),
        f"training loss, last {_LAST_STEPS} steps": number(method.values("loss")[:, -_LAST_STEPS:].mean(), 4),
        f"development loss ({pairs:,} pairs)": number(method.values("last_loss").mean(), 4),
        "accuracy, %": _accuracy(method, pairs),
        "processor time of a step, s": number(_median(method, "seconds")),
        "of it the optimizer's, s": number(_median(method, "update_seconds")),
    }


def _accuracy(method, pairs):
    """Mean over the seeds, ± the standard error of as many draws of a pair."""
    mean = 100 * method.values("last_accuracy").mean()
    return mean_std(mean, _sampling_error(mean, pairs), 1, name="standard error")


def _sampling_error(mean, pairs):
    return np.sqrt(mean * (100 - mean) / pairs)


def _median(method, entry):
    """Over the steps of the first seed: whatever else ran disturbs it little."""
    return float(np.median(method.runs[0][entry]))


def _of_best(compared, pairs):
    accuracy = {name: 100 * method.values("last_accuracy").mean() for name, method in compared.items()}
    ranked = sorted(accuracy, key=lambda name: accuracy[name], reverse=True)
    error = _sampling_error(accuracy[ranked[0]], pairs)
    order = ", ".join(f"{name} {accuracy[name]:.1f}%" for name in ranked)
    return (
        f"Accuracy in order: {order}. The standard error of one value on {pairs:,} pairs is {error:.1f} points; the "
        "spread over seeds comes on top."
    )


def _of_svdlora(compared):
    """How far OPLoRA is from SVDLoRA, which it approximates."""
    for name, method in compared.items():
        if method.config["method"] in ("oplora", "projected oplora") and "SVDLoRA" in compared:
            loss, of_svdlora = (m.values("last_loss").mean() for m in (method, compared["SVDLoRA"]))
            same = method.config["lr"] == compared["SVDLoRA"].config["lr"]
            rate = "the same learning rate" if same else "learning rates of their own"
            yield (
                f"{name} ends at a development loss of {loss:.4f} and SVDLoRA at {of_svdlora:.4f}, by {rate}: "
                f"{name} is {abs(loss - of_svdlora):.4f} {'below' if loss < of_svdlora else 'above'}."
            )


def _of_rates(compared):
    changed = [
        f"{name} (η = {lr:g} for {papers.value:g})"
        for name, method in compared.items()
        if (papers := _papers_lr(method)) is not None and (lr := method.config["lr"]) != papers.value
    ]
    if not changed:
        return "Learning rates are the paper's for RoBERTa-base; where it has none, those of projected OPLoRA."
    return (
        "Short runs, judged by the training loss of their last steps, chose other learning rates than the paper's for "
        f"RoBERTa-base: {', '.join(changed)}."
    )


def _of_time(compared):
    shares = ", ".join(
        f"{name} {100 * _median(method, 'update_seconds') / _median(method, 'seconds'):.0f}%"
        for name, method in compared.items()
    )
    return f"The optimizer's share of a step's time, by the medians over the steps: {shares}."
