import gc
import weakref

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


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_a_policy_computes_in_the_named_precision(precision, dtype):
    policy = runtime.policy("cpu", precision)
    assert policy.record()["precision"] == precision
    with policy.autocast():
        assert nn.Linear(8, 4)(torch.randn(2, 8)).dtype == dtype
    with pytest.raises(ValueError, match="expected precision auto"):
        runtime.policy(precision="float16")


def test_using_is_undone_after_an_error():
    before = runtime.use("cpu", "float32")
    with pytest.raises(KeyError), runtime.using("cpu", "bfloat16"):
        assert runtime.active().bfloat16
        raise KeyError
    assert runtime.active() == before


def test_exact_is_float32_without_tf32_inside_the_block_alone():
    with runtime.using("cpu", "bfloat16") as outside:
        before = torch.backends.cuda.matmul.allow_tf32
        with runtime.tf32(True), runtime.exact() as policy:
            assert runtime.active() == policy == runtime.policy("cpu", "float32")
            assert not torch.backends.cuda.matmul.allow_tf32
        assert runtime.active() == outside
        assert torch.backends.cuda.matmul.allow_tf32 == before


def test_place_uses_channels_last():
    policy = runtime.policy("cpu")
    assert policy.place(torch.zeros(2, 3, 4, 4)).is_contiguous(memory_format=torch.channels_last)
    model = policy.place(nn.Conv2d(3, 8, 3))
    assert model.weight.is_contiguous(memory_format=torch.channels_last)
    assert policy.place(torch.zeros(5, dtype=torch.int64)).shape == (5,)
    volume = policy.place(nn.Sequential(nn.Conv3d(1, 2, 3), nn.Conv2d(3, 2, 3), nn.BatchNorm3d(2)))
    assert volume[0].weight.is_contiguous()
    assert volume[1].weight.is_contiguous(memory_format=torch.channels_last)


def test_rng_depends_on_every_seed():
    draws = {torch.rand(1, generator=runtime.rng(*seeds)).item() for seeds in [(0, 0), (0, 1), (1, 0), (1, 1)]}
    assert len(draws) == 4
    again = [torch.rand(3, generator=runtime.rng(7, 3)) for _ in range(2)]
    assert torch.equal(*again)


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
