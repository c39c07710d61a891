import gc
import weakref

import numpy
import pytest
import torch
from torch import nn

from rqlib.core import runtime


def test_evaluating_restores_every_mode_even_after_an_error():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(), nn.Sequential(nn.Linear(3, 2)))
    model[0].eval()
    before = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError, match="inside"), runtime.evaluating(model):
        assert not any(module.training for module in model.modules())
        raise RuntimeError("inside")
    assert [module.training for module in model.modules()] == before == [True, False, True, True, True]


def test_policy_names_and_records():
    assert runtime.policy("cpu", "float32").record()["precision"] == "float32"
    assert runtime.policy("cpu", "bfloat16").bfloat16
    with pytest.raises(ValueError, match="expected precision auto"):
        runtime.policy(precision="float16")
    with pytest.raises(RuntimeError, match="expected device auto, cpu"):
        runtime.policy(device="tpu9")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_an_absent_gpu_is_said():
    with pytest.raises(RuntimeError, match="this machine has 0 CUDA devices; use device: auto or cpu"):
        runtime.use("cuda")


def test_using_is_undone_after_an_error():
    before = runtime.use("cpu", "float32")
    with pytest.raises(KeyError), runtime.using("cpu", "bfloat16"):
        assert runtime.active().bfloat16
        raise KeyError
    assert runtime.active() == before


def test_autocast_computes_in_the_named_precision():
    x, layer = torch.randn(2, 8), nn.Linear(8, 4)
    with runtime.policy("cpu", "bfloat16").autocast():
        assert layer(x).dtype == torch.bfloat16
    with runtime.policy("cpu", "float32").autocast():
        assert layer(x).dtype == torch.float32


def test_place_uses_channels_last():
    policy = runtime.policy("cpu")
    assert policy.place(torch.zeros(2, 3, 4, 4)).is_contiguous(memory_format=torch.channels_last)
    model = policy.place(nn.Conv2d(3, 8, 3))
    assert model.weight.is_contiguous(memory_format=torch.channels_last)
    assert policy.place(torch.zeros(5, dtype=torch.int64)).shape == (5,)


def test_generator_depends_on_every_seed():
    draws = {torch.rand(1, generator=runtime.rng(*seeds)).item() for seeds in [(0, 0), (0, 1), (1, 0), (1, 1)]}
    assert len(draws) == 4
    again = [torch.rand(3, generator=runtime.rng(7, 3)) for _ in range(2)]
    assert torch.equal(*again)


def test_seed_everything_repeats():
    draws = []
    for _ in range(2):
        runtime.seed_everything(5)
        draws.append((torch.rand(1).item(), numpy.random.rand()))
    assert draws[0] == draws[1]


def test_describe_and_progress(capsys):
    assert {"processor", "cores", "gpu", "torch"} <= set(runtime.describe())
    assert list(runtime.progress(range(3), "three")) == [0, 1, 2]


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_allowed_or_not_inside_the_block_alone(allowed):
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    with pytest.raises(KeyboardInterrupt), runtime.tf32(allowed):
        assert (matmul.allow_tf32, cudnn.allow_tf32) == (allowed, allowed)
        raise KeyboardInterrupt
    assert (matmul.allow_tf32, cudnn.allow_tf32) == before


def test_freeing_leaves_nothing_behind_that_refers_to_itself():
    left = []
    for _ in runtime.freeing(range(3)):
        assert not any(reference() for reference in left)
        module = nn.Linear(1, 1)
        module.__dict__["itself"] = module
        left.append(weakref.ref(module))
        del module
    assert gc.get_freeze_count() == 0
