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


class Experts(nn.Module):
    """Three adapters, of which some are called: which, depends on the step and the process."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(LoRALinear((12, 10), 3, alpha=4) for _ in range(3))

    def forward(self, x, step, rank):
        chosen = {0, 1 + (step + rank) % 2} if step < 6 else {0} if rank == 0 else {0, 2}
        return sum(self.experts[i](x) for i in chosen)


def loss_in_one_pass(model, x):
    """Within ``join`` each forward pass is taken to have a backward pass."""
    y = model(x)
    return (y**2).mean() + y.sin().mean()


def experts():
    torch.manual_seed(0)
    model = Experts()
    for expert in model.experts:
        nn.init.normal_(expert.lora_B.weight, std=0.3)
    return model


def train_experts(case, rank=0, world=1):
    """Weights after eight steps in which adapters have no gradient, in one of the processes or in both."""
    model = experts()
    optimizer = lorsum.torch.OPLoRA(model, lr=0.05, momentum=0.9, debug=True, **case.get("options", {}))
    averaged = world > 1 and case.get("ddp", True)
    wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True) if averaged else model
    for step in range(8):
        optimizer.zero_grad()
        for number, x in enumerate(batch(step).chunk(2)):
            if world == 1 or number == rank:
                ((wrapped(x, step, number) ** 2).mean() * world / 2).backward()
        optimizer.step()
    return results(model, optimizer)


def train_on_uneven_inputs(case, rank=0, world=1):
    """Weights after steps of which the first process takes one less; its share of the last mean is zero."""
    model = network()
    options = {"lr": 0.05, **case.get("options", {})}
    if "scale" in options:
        options["scale"] = SCALES[options["scale"]]
    optimizer = getattr(lorsum.torch, case["optimizer"])(model, **options)
    wrapped = nn.parallel.DistributedDataParallel(model) if world > 1 else model
    steps, micro = case.get("steps", 6), case.get("micro", 1)
    with wrapped.join() if world > 1 else contextlib.nullcontext():
        for step in range(steps - (world > 1 and rank == 0)):
            for i in range(micro):
                synced = world == 1 or i == micro - 1 or not case.get("no_sync")
                share = 1 / 2 if world == 1 else 1
                if world == 1 and step == steps - 1 and not case.get("no_sync"):
                    share *= 0.5 ** (micro - 1 - i)  # DDP adds zeros to all of .grad, the earlier passes' share too
                for number, x in enumerate(batch(step * micro + i).chunk(2)):
                    if number == rank if world > 1 else not (step == steps - 1 and number == 0):
                        with contextlib.nullcontext() if synced else wrapped.no_sync():
                            (share * loss_in_one_pass(wrapped, x)).backward()
            optimizer.step()
            optimizer.zero_grad()
    with_all = batch(100)
    for x in with_all.chunk(world)[rank : rank + 1]:  # and another step with all, after it
        loss_of(wrapped, x).backward()
    optimizer.step()
    return results(model, optimizer)


def results(model, optimizer):
    return {
        "matrices": [adapter.matrix().to_dense() for adapter in optimizer.adapters],
        "parameters": [p.detach() for p in model.parameters()],
        "state": [x for tensors in optimizer.state.values() for x in tensors.values()],
        "traffic": {name: tuple(moved) for name, moved in optimizer.traffic.items()},
    }


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
    return results(model, optimizer)


TRAINED = {"experts": train_experts, "uneven": train_on_uneven_inputs}


def trained(case, rank=0, world=1):
    return TRAINED.get(case.get("task"), train)(case, rank, world)


def main():
    folder, rank, world = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    with open(f"{folder}/cases.pickle", "rb") as file:
        cases = pickle.load(file)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    done = {}
    for name, case in cases.items():
        try:
            done[name] = trained(case, rank, world)
        except RuntimeError as error:
            done[name] = str(error)
    torch.save(done, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
