"""The numbers of Figure 1, and sentences on its shape that are computed from the records."""

from itertools import pairwise

import numpy as np

from analysis.experiments.methods import label
from analysis.experiments.records import Record
from analysis.experiments.tables import Table, interval, short, words
from analysis.studies.linear import RANK
from lorsum.typing import Array
from paper_figures.curves import median_interval, methods

__all__ = ["NEGLIGIBLE", "below_from", "table"]

NEGLIGIBLE = 1e-11  # of the best loss; rounding is at 1e-16
_EPOCHS = (1, 5, 50)


def table(records: list[Record]) -> Table:
    full, mini = methods(records, task="full batch"), methods(records, task="mini-batch")
    rows = [_row(method) for method in full + mini]
    sentences = [*_of_full_batch(full), *_of_mini_batch(mini), *_of_momentum_rank(mini)]
    sentences += _of_full_training(full + mini)
    return Table("Figure 1: excess loss of the linear task, median over seeds [95% interval]", rows, sentences)


def _row(method):
    excess = method.values("excess")
    last = excess.shape[1] - 1
    row = {"task": words(method.config["task"]), "method": words(label(method.config))}
    row["momentum rank"] = words(_momentum_rank(method.config))
    for epoch in (*(epoch for epoch in _EPOCHS if epoch < last), last):
        row[f"epoch {epoch}"] = interval(median_interval(excess[:, epoch]))
    return row


def _momentum_rank(config):
    if config["method"] != "oplora" or not config["momentum"]:
        return ""
    return str(config.get("momentum_rank", RANK))


def _excess(method, epoch=-1):
    """Median excess after an epoch."""
    return float(np.median(method.values("excess")[:, epoch]))


def _of_full_batch(full):
    svd = next(method for method in full if method.config["method"] == "svdlora")
    relative = median_interval(np.abs(svd.values("excess")[:, 1]) / svd.values("best"))
    yield f"Full batch: SVDLoRA's relative excess |excess| / best after one step is {interval(relative, 2).text}."

    oplora = [method for method in full if method.config["method"] == "oplora"]
    first = [_excess(method, 1) for method in oplora]
    yield (
        f"Full batch: OPLoRA's median excess after one epoch, with K = {_list(m.config['iters'] for m in oplora)}, is "
        f"{_list(short(value) for value in first)}: it {'falls' if _falls(first) else 'does not always fall'} with K."
    )
    for rivals in (["lora sgd", "lora adamw"], ["preconditioned sgd", "preconditioned adamw"]):
        yield "Full batch, at the end: " + _comparison(oplora, [m for m in full if m.config["method"] in rivals])


def _comparison(methods, rivals):
    """Whether each method's final median excess is below each rival's, and where not."""
    exceptions = [
        f"{method.name} ({short(_excess(method))}) is not below {rival.name} ({short(_excess(rival))})"
        for method in methods
        for rival in rivals
        if not _excess(method) < _excess(rival)
    ]
    names = " and ".join(rival.name for rival in rivals)
    return f"every OPLoRA ×K is below {names}" + (f", except: {'; '.join(exceptions)}." if exceptions else ".")


def _of_mini_batch(mini):
    svd = next(method for method in mini if method.config["method"] == "svdlora")
    oplora = [m for m in mini if m.config["method"] == "oplora" and "momentum_rank" not in m.config]
    yield "Mini-batch, at the end: " + _comparison(oplora, [svd])

    epochs = svd.values("excess").shape[1] - 1
    for epoch in (epoch for epoch in (1, 5) if epoch < epochs):
        yield f"Mini-batch, after epoch {epoch}: " + _by_iterations(oplora, epoch)
    yield "Mini-batch, at the end: " + _by_iterations(oplora, epochs)
    if epochs > 50:
        middle, end = _excess(oplora[0], 50), _excess(oplora[0])
        yield (
            f"Mini-batch: {oplora[0].name}'s median excess {'falls further' if end < middle else 'does not fall'} "
            f"after epoch 50: {short(middle)}, then {short(end)}."
        )


def _by_iterations(methods, epoch):
    values = [_excess(method, epoch) for method in methods]
    verdict = "more iterations are better" if _falls(values) else "more iterations are not always better"
    return f"{_list(f'{m.name} {short(value)}' for m, value in zip(methods, values, strict=True))}; {verdict}."


def _of_momentum_rank(mini):
    """Distance from SVDLoRA early on, by momentum rank."""
    svd = next(method for method in mini if method.config["method"] == "svdlora")
    for K in dict.fromkeys(m.config["iters"] for m in mini if m.config["method"] == "oplora"):
        oplora = [m for m in mini if m.config["method"] == "oplora" and m.config["iters"] == K]
        oplora.sort(key=lambda method: method.config.get("momentum_rank", RANK))
        distances = [abs(_excess(method, 1) - _excess(svd, 1)) for method in oplora]
        yield (
            f"OPLoRA ×{K} with momentum rank {_list(_momentum_rank(m.config) for m in oplora)} is "
            f"{_list(short(distance) for distance in distances)} from SVDLoRA's median excess after one epoch: a "
            f"larger rank {'brings it closer' if _falls(distances) else 'does not always bring it closer'}."
        )


def _of_full_training(compared):
    for method in compared:
        epoch = below_from(np.median(method.values("excess"), axis=0), NEGLIGIBLE * np.median(method.values("best")))
        if epoch is not None:
            task = method.config["task"].capitalize()
            yield f"{task}: {method.name} is below the best loss of rank {RANK} from epoch {epoch} on."


def below_from(excess: Array, negligible: float) -> int | None:
    """The epoch from which on the excess is negative, and not by rounding; None if it is not at the end."""
    others = np.flatnonzero(~(excess < -negligible))
    first = others[-1] + 1 if len(others) else 0
    return int(first) if first < len(excess) else None


def _falls(values):
    return all(after < before for before, after in pairwise(values))


def _list(texts):
    return ", ".join(map(str, texts))
