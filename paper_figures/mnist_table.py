"""The numbers of the MNIST figure beside the paper's, and sentences that are computed from the records."""

from analysis.experiments.records import Record
from analysis.experiments.tables import Table, mean_std, number, short, words
from paper_figures.accuracy import average, averages, estimate, last, papers_average
from paper_figures.curves import methods

__all__ = ["table"]

_HALF_A_POINT = 0.5


def table(records: list[Record]) -> Table:
    compared = {method.name: method for method in methods(records)}
    base = _seconds(compared["LoRA SGD"])
    rows = [_row(method, base) for method in compared.values()]
    sentences = [*_of_svdlora(compared), _of_lora(compared), _of_best(compared), _of_time(compared)]
    return Table("MNIST: test accuracy (%), mean ± standard deviation over seeds", rows, sentences)


def _row(method, base):
    row = {
        "method": words(method.name),
        "average over epochs": mean_std(*average(method)),
        "last epoch": mean_std(*estimate(last(method))),
        "training loss, last epoch": number(method.values("loss")[:, -1].mean()),
        "fastest epoch, s": number(_seconds(method)),
        "× LoRA SGD": number(_seconds(method) / base),
    }
    if (papers := papers_average(method)) is not None:
        row["paper's average (LeNet5, 20 epochs)"] = mean_std(*papers)
    return row


def _seconds(method):
    """Of an epoch's steps alone: the fastest one, which compilation and whatever else ran have slowed least."""
    return float(method.values("seconds").min())


def _of_svdlora(compared):
    """How OPLoRA ×1 compares with SVDLoRA: the seeds give both the same network, data and order."""
    difference = averages(compared["OPLoRA ×1"]) - averages(compared["SVDLoRA"])
    within = abs(difference.mean()) <= _HALF_A_POINT
    yield (
        f"OPLoRA ×1 and SVDLoRA are {'within' if within else 'not within'} half a point of each other: the difference "
        f"of their averages is {mean_std(*estimate(difference)).text} points, paired by seed."
    )


def _of_lora(compared):
    lora = average(compared["LoRA SGD"]).value
    ours = {name: average(compared[name]).value for name in ("OPLoRA ×1", "SVDLoRA")}
    behind = [f"{name} falls {lora - value:.2f} points short" for name, value in ours.items() if value <= lora]
    above = [f"{name} by {value - lora:.2f}" for name, value in ours.items()]
    if behind:
        return f"Not both of OPLoRA ×1 and SVDLoRA are above LoRA SGD ({lora:.2f}%): {' and '.join(behind)}."
    return f"OPLoRA ×1 and SVDLoRA are both above LoRA SGD ({lora:.2f}%), in points: {' and '.join(above)}."


def _of_best(compared):
    values = {name: average(method).value for name, method in compared.items() if name != "full"}
    best = max(values, key=lambda name: values[name])
    return f"The best average, full training apart, is {best}'s: {values[best]:.2f}%."


def _of_time(compared):
    base = _seconds(compared["LoRA SGD"])
    names = ("OPLoRA ×1", "OPLoRA ×2", "SVDLoRA")
    ratios = ", ".join(f"{name} {short(_seconds(compared[name]) / base)}" for name in names)
    return (
        "The steps of an epoch, the fastest of each method since all else that ran slowed the others, take this many "
        f"times LoRA SGD's {short(base)} s: {ratios}."
    )
