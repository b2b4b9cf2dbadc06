"""Copies of model and optimizer, in memory, on disk and by torch.distributed.checkpoint: they go on bit for bit."""

import copy
import io
import pickle

import pytest
import torch
from torch import multiprocessing, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from lorsum import optim
from lorsum.torch import (
    LoRALinear,
    OPLoRA,
    PreconditionedAdamW,
    PreconditionedSGD,
    ProjectedOPLoRA,
    ScaledOPLoRA,
    SVDLoRA,
)

RULES = {
    "OPLoRA": (OPLoRA, {"momentum": 0.9}),
    "OPLoRA without momentum": (OPLoRA, {"others": optim.AdamW(lr=0.01)}),
    "OPLoRA overlapped": (OPLoRA, {"momentum": 0.9, "overlap": True}),
    "ProjectedOPLoRA": (ProjectedOPLoRA, {"momentum": 0.9}),
    "ScaledOPLoRA": (ScaledOPLoRA, {"momentum": 0.5, "scale": optim.Shampoo(rank=3, damping=0.1)}),
    "PreconditionedSGD": (PreconditionedSGD, {"momentum": 0.9, "others": optim.AdamW(lr=0.01)}),
    "PreconditionedAdamW": (PreconditionedAdamW, {"others": optim.SGD(lr=0.01, momentum=0.9)}),
    "SVDLoRA": (SVDLoRA, {"momentum": 0.9}),
}
every_rule = pytest.mark.parametrize("rule", RULES)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(9, 12), nn.Tanh(), LoRALinear((12, 10), rank=3), nn.Tanh(), LoRALinear((10, 5), rank=2)
    )


def pair_of(rule):
    model = network()
    cls, options = RULES[rule]
    return model, cls(model, lr=0.05, **options)


def train(model, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        x = torch.randn(4, 9, generator=torch.Generator().manual_seed(step))
        (model(x) ** 2).mean().backward()
        optimizer.step()


def equal(one, other):
    return all(map(torch.equal, one.parameters(), other.parameters()))


def saved(pair):
    file = io.BytesIO()
    torch.save(pair, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def pickled(pair):
    return pickle.loads(pickle.dumps(pair))


def optimizer_first(pair):
    optimizer, model = copy.deepcopy(pair[::-1])
    return model, optimizer


def copied_twice(pair):
    return copy.deepcopy(copy.deepcopy(pair))


@every_rule
@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("copied", [copy.deepcopy, saved, pickled, optimizer_first, copied_twice])
def test_a_copy_trains_like_the_original_and_apart_from_it(copied, steps, rule):
    model, optimizer = pair_of(rule)
    train(model, optimizer, range(steps))
    its_model, its_optimizer = copied((model, optimizer))
    before = copy.deepcopy(model)
    train(its_model, its_optimizer, range(3, 6))
    assert equal(model, before)
    train(model, optimizer, range(3, 6))
    assert equal(model, its_model) and not equal(model, before)


def test_a_copy_in_another_process():
    model, optimizer = pair_of("OPLoRA")
    train(model, optimizer, range(3))
    context = multiprocessing.get_context("spawn")
    its_model, its_optimizer = copy.deepcopy((model, optimizer))
    its_model.share_memory()
    process = context.Process(target=train, args=(its_model, its_optimizer, range(3, 5)))
    process.start()
    process.join(timeout=120)
    assert process.exitcode == 0
    train(model, optimizer, range(3, 5))
    assert equal(model, its_model)


@pytest.mark.parametrize("copied", [copy.deepcopy, saved, pickled])
def test_the_first_step_of_an_optimizer_that_was_copied_alone_says_so(copied):
    model, optimizer = pair_of("OPLoRA")
    train(model, optimizer, range(2))
    alone = copied(optimizer)
    alone.zero_grad()
    (model(torch.ones(1, 9)) ** 2).mean().backward()
    with pytest.raises(RuntimeError, match="Copy model and optimizer together"):
        alone.step()
    other, its = pair_of("OPLoRA")  # what it holds is good nevertheless
    other.load_state_dict(model.state_dict())
    its.load_state_dict(alone.state_dict())
    for m, o in ((model, optimizer), (other, its)):
        train(m, o, range(2, 4))
    assert equal(model, other)


def test_a_copy_of_the_model_alone_is_a_model():
    model, optimizer = pair_of("OPLoRA")
    average = torch.optim.swa_utils.AveragedModel(model)
    train(model, optimizer, range(2))
    average.update_parameters(model)
    x = torch.ones(2, 9)
    torch.testing.assert_close(average(x), model(x))  # the first update is the model
    train(model, optimizer, range(2, 4))
    assert not equal(average.module, model)


# --- torch.distributed.checkpoint ---


@every_rule
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
@pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "disk"])
@pytest.mark.parametrize(
    "options", [{}, {"flatten_optimizer_state_dict": True}, {"full_state_dict": True, "cpu_offload": True}], ids=str
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")  # torch's own
def test_a_distributed_checkpoint_goes_on_bit_for_bit(rule, used, on_disk, options, tmp_path):
    options = StateDictOptions(**options)
    model, optimizer = pair_of(rule)
    train(model, optimizer, range(3))
    optimizer.zero_grad()
    other, its = pair_of(rule)
    if used:
        train(other, its, range(10, 12))
        its.zero_grad()
    states = get_state_dict(model, optimizer, options=options)
    if on_disk:
        checkpoint.save({"model": states[0], "optimizer": states[1]}, checkpoint_id=tmp_path)
        states = get_state_dict(other, its, options=options)
        checkpoint.load({"model": states[0], "optimizer": states[1]}, checkpoint_id=tmp_path)
    states = copy.deepcopy(states)
    set_state_dict(other, its, model_state_dict=states[0], optim_state_dict=states[1], options=options)
    assert equal(model, other)
    for m, o in ((model, optimizer), (other, its)):
        train(m, o, range(3, 6))
    assert equal(model, other)


def test_hooks_see_what_is_loaded():
    """A hook of load_state_dict may put another state in the place of the one given."""
    model, optimizer = pair_of("OPLoRA")
    train(model, optimizer, range(2))
    state = optimizer.state_dict()
    other, its = pair_of("OPLoRA")
    other.load_state_dict(model.state_dict())
    its.register_load_state_dict_pre_hook(lambda _, given: given["renamed"])
    its.load_state_dict({"renamed": state})
    for m, o in ((model, optimizer), (other, its)):
        train(m, o, range(2, 4))
    assert equal(model, other)
