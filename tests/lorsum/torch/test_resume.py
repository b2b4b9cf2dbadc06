"""A run that is killed and resumed from its last checkpoint continues bit for bit."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

RUN = """
import sys
import torch
from torch import nn
import lorsum.torch
from lorsum import optim

folder, optimizer, killed_at = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(108, 20), nn.Tanh(), nn.Linear(20, 5))
lorsum.torch.add_lora(model, 4, alpha=8)
options = {"others": optim.AdamW(lr=0.01)}
if optimizer != "PreconditionedAdamW":
    options["momentum"] = 0.9
if optimizer == "ScaledOPLoRA":
    options["scale"] = optim.Shampoo(rank=3, damping=0.1)
optimizer = getattr(lorsum.torch, optimizer)(model, lr=0.05, **options)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)
parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
first = 0
try:
    saved = torch.load(f"{folder}/checkpoint.pt", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    first = saved["step"] + 1
except FileNotFoundError:
    pass
for step in range(first, 12):
    x = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(step))
    optimizer.zero_grad()
    (model(x) ** 2).mean().backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()
    scheduler.step()
    if step % 3 == 2:
        torch.save({"step": step} | {n: p.state_dict() for n, p in parts.items()}, f"{folder}/writing.pt")
        import os
        os.replace(f"{folder}/writing.pt", f"{folder}/checkpoint.pt")
    if step == killed_at:
        os.kill(os.getpid(), 9)
torch.save([p.detach() for p in model.parameters()], f"{folder}/done.pt")
"""


def run(folder, optimizer, killed_at=-1):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-c", RUN, str(folder), optimizer, str(killed_at)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("optimizer", ["OPLoRA", "ScaledOPLoRA", "PreconditionedAdamW"])
def test_a_killed_run_continues_bit_for_bit(optimizer, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    ended = run(whole, optimizer)
    assert ended.returncode == 0, ended.stderr
    assert run(broken, optimizer, killed_at=7).returncode == -signal.SIGKILL
    assert not (broken / "done.pt").exists()
    ended = run(broken, optimizer)
    assert ended.returncode == 0, ended.stderr
    expected, actual = (torch.load(folder / "done.pt", weights_only=True) for folder in (whole, broken))
    for p, q in zip(actual, expected, strict=True):
        assert torch.equal(p, q)
