"""Convergence of LoRSum against K, on matrices with known spectra: how much is one more iteration worth?

How fast do error, excess and angle fall, beside the predicted rate (σ_{r+1}/σ_r)²: from a random start and from the
last step, with a proximal term, with badly conditioned factors, accelerated, and as the momentum of a training?
"""

import math
from collections.abc import Sequence
from os import PathLike

import numpy as np

from analysis.experiments.command_line import count, parser
from analysis.experiments.methods import Config
from analysis.experiments.records import Record, run_study
from analysis.experiments.tables import plain
from lorsum import History, LowRank, LowRankSum, gap, lorsum, truncated_svd
from lorsum.theory import contraction_rate
from lorsum.typing import Array

__all__ = [
    "SPECTRA",
    "command",
    "configurations",
    "main",
    "measured_rate",
    "problem",
    "rates",
    "run",
    "spectrum",
    "table",
]

SHAPE, RANK, TERMS = (300, 200), 8, 48
SPECTRA = ("geometric, 0.5", "geometric, 0.9", "1/i", "flat, gap of 2", "flat")
STEPS = (0.01, 0.03, 0.1, 0.3, 1.0)  # η ‖G‖₂ / σ_r(W)
WEIGHTS = (1e-4, 1e-3, 1e-2, 1e-1)  # λ, in units of σ_r(W)
RANKS = (2, 4, 16, 32)
GAUGES = (1e0, 1e3, 1e6)  # condition number of A in W = (U A)(V A⁻ᵀ)ᵀ
ACCELERATIONS = [
    {"oversample": oversample, "accelerate": accelerate}
    for oversample, accelerate in ((4, None), (0, "krylov"), (4, "krylov"))
]
MOMENTUM_RANKS, MOMENTUM_ITERS = (RANK, 2 * RANK, 4 * RANK), (1, 2, 4, 8)


def configurations(*, seeds: int = 5, iters: int = 40, tasks: Sequence[str] | None = None) -> list[Config]:
    """Configurations of the study.

    Parameters
    ----------
    seeds : int
        Repetitions of each, with other random matrices.
    iters : int
        The largest K.
    tasks : sequence of str, optional
        Which of its parts; default: all. "cold start" (every spectrum, from a random matrix), "warm start" (from W
        to W − ηG: every spectrum, every step size), "proximal term" (λ), "rank", "conditioning" (of W's factors),
        "acceleration" (of cold starts, by oversampling and Krylov spaces) and "momentum" (its rank).

    Returns
    -------
    list of dict
    """
    base, average = {"rank": RANK, "iters": iters}, {"momentum": 0.9, "steps": 40, "batch": 64}
    slow = {**base, "spectrum": "1/i"}
    parts: dict[str, list[dict]] = {
        "cold start": [{**base, "spectrum": name} for name in SPECTRA],
        "warm start": [{**base, "spectrum": name, "eta": eta} for name in SPECTRA for eta in STEPS],
        "proximal term": [{**slow, "eta": 0.1, "reg": reg} for reg in WEIGHTS],
        "rank": [{**slow, "rank": rank} for rank in RANKS],
        "conditioning": [
            {**slow, "eta": 0.3, "gauge": gauge, "solver": solver} for gauge in GAUGES for solver in ("qr", "gram")
        ],
        "acceleration": [{**base, "spectrum": name, **option} for name in ("1/i", "flat") for option in ACCELERATIONS],
        "momentum": [{"spectrum": "1/i", "momentum_rank": rank, **average} for rank in MOMENTUM_RANKS],
    }
    tasks = tuple(parts) if tasks is None else tasks
    if unknown := set(tasks) - set(parts):
        raise ValueError(f"`tasks` has {sorted(unknown)}; the tasks are {', '.join(parts)}.")
    return [
        {"study": "convergence", "task": task, "seed": seed, **part}
        for task in tasks
        for part in parts[task]
        for seed in range(seeds)
    ]


def run(config: Config) -> dict:
    """Follow one iteration to its largest K.

    Returns
    -------
    dict
        The curves of `lorsum.History` (``iteration`` is K, then ``error``, ``excess``, ``distance``, ``angle``,
        ``condition`` and ``passes``); ``singular_values`` of the target; ``rate``, the predicted (σ_{r+1}/σ_r)²; and,
        of the plain iteration with well conditioned factors, which it is meant for, the measured ``angle_rate``, of the
        tangent of the largest angle, and ``excess_rate`` (see `measured_rate`).

        For the task "momentum": ``error``, ``excess`` and ``distance`` of the momentum buffer M ← LoRSum(αM + G) of
        equation 9 after the last mini-batch, for the K of each update in ``iteration``; ``limit``, the same with the
        truncated SVD for LoRSum, what K → ∞ comes to; and ``norm``, that of the exact momentum.
    """
    if config["task"] == "momentum":
        return _momentum(config)
    target, init = problem(config)
    options = {name: config[name] for name in ("reg", "solver", "oversample", "accelerate") if name in config}
    history = History()
    lorsum(target, init=init, iters=config["iters"], callback=history, **options)
    s, r = truncated_svd(target, target.rank).s, config["rank"]
    results = {**history.to_dict(), "singular_values": s, "rate": contraction_rate(s, r)}
    if not options:
        # The excess is a difference of norms of the size of ‖W‖: what is smaller is rounding
        rounding = 1e3 * np.finfo(float).eps * float(np.linalg.norm(s) / np.linalg.norm(s[r:]))
        results["angle_rate"] = measured_rate(np.tan(history.angle), rounding=1e-12, asymptotic=0.2)
        results["excess_rate"] = measured_rate(history.excess, rounding=rounding, asymptotic=0.02)
    return results


def problem(config: Config) -> tuple[LowRankSum | LowRank, LowRank]:
    """The target of a configuration, and where its iteration starts.

    Returns
    -------
    target : LowRankSum or LowRank
        Warm start (the configuration has an ``eta``): W − ηG as in training, W of rank r and G of rank 48 with the
        configuration's spectrum, scaled so that σ_r(W) = ‖G‖₂ = 1. Cold start: one matrix with that spectrum.
    init : LowRank
        W, its factors multiplied by A and A⁻ᵀ if the configuration has a ``gauge``; or a random matrix.
    """
    rng, r = np.random.default_rng([config["seed"], 0]), config["rank"]
    s = spectrum(config["spectrum"], r)
    if "eta" not in config:
        return _random_matrix(s, rng), LowRank(*(rng.standard_normal((d, r)) for d in SHAPE))
    W = _random_matrix(s[:r] / s[r - 1], rng)
    if "gauge" in config:
        P, Q = (_orthonormal(r, r, rng) for _ in range(2))
        scales = np.geomspace(1, config["gauge"], r)
        W = LowRank(W.U @ (P * scales) @ Q, W.V @ (P / scales) @ Q)
    return W - config["eta"] * _random_matrix(s, rng), W


def spectrum(name: str, rank: int = RANK) -> Array:
    """The 48 singular values of a named spectrum, descending from 1; only that with a gap asks for the rank r."""
    i = np.arange(1, TERMS + 1)
    return {
        "geometric, 0.5": 0.5 ** (i - 1.0),
        "geometric, 0.9": 0.9 ** (i - 1.0),
        "1/i": 1 / i,
        "flat, gap of 2": np.where(i <= rank, 1.0, 0.5),
        "flat": np.linspace(1, 0.7, TERMS),  # σ_{r+1}/σ_r = 0.993 at rank 8
    }[name]


def measured_rate(values: Sequence[float] | Array, *, rounding: float, asymptotic: float) -> float:
    """The factor an iteration by which a sequence falls in the end.

    Parameters
    ----------
    values : sequence of float
        One for each K from 0; the first is left out, since the fall from the start is another.
    rounding, asymptotic : float
        Values below ``rounding`` are rounding errors, values above ``asymptotic`` not asymptotic; neither is used.

    Returns
    -------
    float
        Geometric mean over the last eight ratios or fewer; nan if there are fewer than two, or if their first and
        second half differ by more than 5 % (in the logarithm): no rate can be seen then.
    """
    logs = []
    for value in values[1:]:  # up to the first that is rounding error: noise may rise again
        if not value > rounding:
            break
        if value <= asymptotic:
            logs.append(math.log(value))
    falls = np.diff(logs)[-8:]
    if len(falls) < 2:
        return math.nan
    early, late = (float(np.mean(half)) for half in np.array_split(falls, 2))
    return math.exp(float(np.mean(falls))) if abs(early - late) <= 0.05 * abs(late) else math.nan


def rates(records: Sequence[Record]) -> list[dict]:
    """Predicted and measured rates of cold starts, warm starts and ranks.

    Returns
    -------
    list of dict
        One for each spectrum, step size and rank: ``start``, ``spectrum``, ``eta`` (None for a cold start), ``rank``;
        ``predicted``, the rate of the angle; and how fast ``angle`` and ``excess`` fall as a multiple of that, the
        logarithm of their rates over that of ``predicted`` and of ``predicted`` ** 2: 1 is as predicted, 2 would take
        half the iterations. Medians over the seeds; nan where none shows a rate.
    """
    groups: dict[tuple, list[tuple]] = {}
    for record in records:
        config, results = record["config"], record["results"]
        if "angle_rate" in results:
            key = ("warm" if "eta" in config else "cold", config["spectrum"], config.get("eta"), config["rank"])
            slope = math.log(results["rate"])
            speeds = math.log(results["angle_rate"]) / slope, math.log(results["excess_rate"]) / (2 * slope)
            groups.setdefault(key, []).append((results["rate"], *speeds))
    names = ("start", "spectrum", "eta", "rank", "predicted", "angle", "excess")
    rows = [(*key, *(_median(column) for column in zip(*group, strict=True))) for key, group in groups.items()]
    return [dict(zip(names, row, strict=True)) for row in rows]


def table(records: Sequence[Record]) -> str:
    """`rates` as text, one line each."""
    rows = [
        [row["start"], row["spectrum"], row["eta"] or "–", row["rank"], f"{row['predicted']:.3g}"]
        + [f"{row[quantity]:.3f}" for quantity in ("angle", "excess")]
        for row in rates(records)
    ]
    return plain(["start", "spectrum", "η", "rank", "predicted", "angle", "excess"], rows)


def main(
    folder: str | PathLike = "records/convergence", *, seeds: int = 5, iters: int = 40, workers: int | None = None
) -> list[Record]:
    """Run the study and return its records."""
    return run_study(run, configurations(seeds=seeds, iters=iters), folder, workers=workers)


def command(arguments: Sequence[str] | None = None) -> None:
    """Run the study as from the command line."""
    options = parser("analysis convergence", __doc__, folder="records/convergence", seeds=5, workers=None)
    options.add_argument("--iters", type=count, default=40, help="the largest K (default: %(default)s)")
    records = main(**vars(options.parse_args(arguments)))
    print("Predicted: (σᵣ₊₁/σᵣ)². Angle, excess: how fast they fall, as a multiple of it; nan: no rate to be seen.")
    print(table(records))


def _momentum(config):
    m, n = SHAPE
    rng, rank, alpha = np.random.default_rng([config["seed"], 0]), config["momentum_rank"], config["momentum"]
    D = _random_matrix(spectrum(config["spectrum"]), rng)
    noise = float(D.norm()) / m**0.5  # as large as an entry of D x
    limit = LowRank(np.zeros((m, rank)), rng.standard_normal((n, rank)))
    buffers, exact = dict.fromkeys(MOMENTUM_ITERS, limit), np.zeros(SHAPE)
    for _ in range(config["steps"]):  # gradients at zero of least squares, y = D x + noise
        X = rng.standard_normal((config["batch"], n))
        S = X @ D.T + noise * rng.standard_normal((config["batch"], m))
        G = LowRank(S.T / config["batch"], X.T)
        exact = alpha * exact + G.to_dense()
        buffers = {K: lorsum(alpha * M + G, iters=K, gauge="balanced") for K, M in buffers.items()}
        limit = truncated_svd(alpha * limit + G, rank).to_lowrank()
    gaps = [gap(M, exact) for M in buffers.values()]
    return {
        "iteration": list(buffers),
        "error": [one.error for one in gaps],
        "excess": [one.excess for one in gaps],
        "distance": [one.distance for one in gaps],
        "limit": gap(limit, exact)._asdict(),
        "norm": float(np.linalg.norm(exact)),
    }


def _median(values):
    known = [value for value in values if not math.isnan(value)]
    return float(np.median(known)) if known else math.nan


def _random_matrix(s, rng):
    """A matrix with these singular values and random singular vectors, in balanced factors."""
    U, V = (_orthonormal(d, len(s), rng) for d in SHAPE)
    return LowRank(U * np.sqrt(s), V * np.sqrt(s))


def _orthonormal(rows, columns, rng):
    return np.linalg.qr(rng.standard_normal((rows, columns)))[0]
