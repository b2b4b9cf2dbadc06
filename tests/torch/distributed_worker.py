"""One of the processes of test_distributed.py: trains on its share of every batch and saves what came out."""

import contextlib
import itertools
import pickle
import sys

import torch
from torch import distributed as dist
from torch import nn

import lorsum.torch
from lorsum import optim
from lorsum.torch import LoRALinear

ROWS = 8
SCALES = {"KFAC": optim.KFAC(rank=3, damping=0.1), "Shampoo": optim.Shampoo(rank=3, damping=0.1)}


def network(sizes=(12, 10, 9)):
    torch.manual_seed(0)
    layers = [nn.Linear(12, 12), nn.Tanh(), *(LoRALinear(pair, 3, alpha=4) for pair in itertools.pairwise(sizes))]
    model = nn.Sequential(*layers)
    for layer in model[2:]:
        nn.init.normal_(layer.lora_B.weight, std=0.3)
    return model


def batch(step):
    return torch.randn(ROWS, 12, generator=torch.Generator().manual_seed(step))


def loss_of(model, x):
    return (model(x) ** 2).mean() + model(x).sin().mean()


def train(case, rank=0, world=1):
    """Weights after ten steps, the traffic of the last one, and the optimizer's state."""
    model = network(case.get("sizes", (12, 10, 9))).to(getattr(torch, case.get("dtype", "float32")))
    options = {"lr": 0.05, **case.get("options", {})}
    if options.get("rng") == "rank":
        options["rng"] = rank
    if "scale" in options:
        options["scale"] = SCALES[options["scale"]]
    optimizer = getattr(lorsum.torch, case["optimizer"])(model, **options)
    wrapped = nn.parallel.DistributedDataParallel(model) if world > 1 and case.get("ddp", True) else model
    for step in range(case.get("steps", 10)):
        optimizer.zero_grad()
        chunks = batch(step).to(next(model.parameters()).dtype).chunk(world)[rank].chunk(case.get("micro", 1))
        for i, x in enumerate(chunks):
            synced = i == len(chunks) - 1 or not case.get("no_sync")
            with contextlib.nullcontext() if synced or world == 1 else wrapped.no_sync():
                (loss_of(wrapped, x) / len(chunks)).backward()
        if case.get("clip"):
            nn.utils.clip_grad_norm_(model.parameters(), case["clip"])
        for p in model.parameters():
            if p.grad is not None:
                p.grad.mul_(case.get("multiply", 1.0))
                p.data.mul_(case.get("decay", 1.0))
        optimizer.step()
    matrices = [adapter.matrix().to_dense() for adapter in optimizer.adapters]
    state = [x for tensors in optimizer.state.values() for x in tensors.values()]
    return {
        "matrices": matrices,
        "parameters": [p.detach() for p in model.parameters()],
        "state": state,
        "traffic": {name: tuple(moved) for name, moved in optimizer.traffic.items()},
    }


def main():
    folder, rank, world = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    with open(f"{folder}/cases.pickle", "rb") as file:
        cases = pickle.load(file)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    done = {}
    for name, case in cases.items():
        try:
            done[name] = train(case, rank, world)
        except RuntimeError as error:
            done[name] = str(error)
    torch.save(done, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
