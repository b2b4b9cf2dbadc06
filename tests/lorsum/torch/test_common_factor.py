"""The number by which a gradient was multiplied, found from its values."""

import math

import pytest
import torch

from lorsum.torch import LoRALinear, PreconditionedSGD
from lorsum.torch._common_factor import Snapshot
from lorsum.torch._distributed import local_factor


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("c", [1.0, -1.0, 0.3, -(2.0**-10), 17.0])
def test_multiples(dtype, c):
    grad = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert Snapshot(grad).factor(c * grad) == pytest.approx(c, rel=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e20, 1e30])
def test_numbers_whose_squares_leave_single_precision(size):
    grad = size * torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    assert Snapshot(grad).factor(-0.5 * grad) == pytest.approx(-0.5, rel=1e-5)


def test_no_multiples():
    grad = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    clipped, shifted, unlike = grad.clamp(-0.5, 0.5), grad + 0.01, torch.ones(7, 5)
    for other in (clipped, shifted, unlike, grad * torch.nan, grad[:3], grad.double()):
        assert math.isnan(Snapshot(grad).factor(other))
    assert math.isnan(Snapshot(torch.zeros(7, 5)).factor(grad))


def test_cleared_ones():
    zero, grad = torch.zeros(2, 2), torch.tensor([[1.0, torch.nan], [0.0, torch.inf]])
    assert Snapshot(grad).factor(zero) == 0
    assert Snapshot(torch.ones(2, 2)).factor(zero) == 0
    assert Snapshot(zero).factor(zero) is None
    assert math.isnan(Snapshot(grad).factor(grad))


def test_untouched_ones():
    grad = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    snapshot = Snapshot(grad)
    assert snapshot.is_untouched(grad) and not snapshot.is_written_to(grad)
    grad.data.neg_()  # has no version of its own
    assert not snapshot.is_untouched(grad) and not snapshot.is_written_to(grad)
    grad.neg_()
    assert not snapshot.is_untouched(grad) and snapshot.is_written_to(grad)
    assert snapshot.is_written_to(grad.clone())


def captured(scale):
    """The capture of an adapter after a backward pass through a loss of this scale."""
    torch.manual_seed(0)
    layer = LoRALinear((6, 5), 2)
    torch.nn.init.normal_(layer.lora_B.weight)
    optimizer = PreconditionedSGD(layer, lr=0.1)
    (scale * layer(torch.randn(8, 6)).square().mean()).backward()
    return optimizer._captures[0]


@pytest.mark.parametrize("scale", [1.0, 2.0**16])
@pytest.mark.parametrize("c", [1.0, -1.0, 0.9, 1e-3, 1e-8, 1e-25, 1e6])
def test_multiples_without_a_snapshot(scale, c):
    """As between processes: however small c is, the rounding errors of the gradient are no reason to take it for 1."""
    capture = captured(scale)
    for p in (capture.adapter.A, capture.adapter.B):
        p.grad.mul_(c / scale)
    assert local_factor(capture) == pytest.approx(c / scale, rel=1e-4)


def test_gradients_that_are_not_finite_without_a_snapshot():
    capture = captured(1.0)
    for p in (capture.adapter.A, capture.adapter.B):
        p.grad.fill_(torch.nan)
    with pytest.raises(RuntimeError, match="its gradient is not finite"):
        local_factor(capture)
