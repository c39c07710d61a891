"""Every operation with an ONNX form against torch, and every builtin kind of the table has one."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from rqlib.defenses import AveragedRange, DDTReLU, DTReLU
from rqlib.quantization import onnx_export, onnx_operations, points
from tests import quantized_networks
from tests.quantization.test_onnx_export import run

MODULES = [
    *(nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-0.3, 0.4), nn.LeakyReLU(0.2), nn.ELU(0.7), nn.Hardswish(), nn.Hardsigmoid()),
    *(nn.SiLU(), nn.GELU(), nn.GELU("tanh"), nn.Mish(), nn.Sigmoid(), nn.Tanh(), nn.Softplus(2.0), nn.Softmax(1)),
    *(nn.PReLU(3), nn.Dropout(), nn.ZeroPad2d((1, 2, 0, 3)), nn.ReflectionPad2d((1, 2, 3, 0)), nn.ChannelShuffle(3)),
    *(nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(3, 2, ceil_mode=True), nn.MaxPool2d((2, 3), (2, 1), dilation=2)),
    *(nn.AvgPool2d(2), nn.AvgPool2d(3, 2, 1), nn.AvgPool2d(3, 2, 1, count_include_pad=False)),
    *(nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d(4), nn.AdaptiveAvgPool2d((3, 5)), nn.AdaptiveAvgPool2d(16)),
    *(nn.AdaptiveMaxPool2d(4), nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False)),
    *(DTReLU(3), DTReLU(2, learn_lower=True), DDTReLU(3), AveragedRange(4)),
    nn.Conv2d(3, 4, 3, padding="same", dilation=2),
    *(nn.Conv2d(3, 6, (3, 1), 2, (1, 0), 2, groups=3), nn.Linear(8, 5), nn.Unflatten(1, (3, 1))),
]  # fmt: skip
FUNCTIONS = {
    "numbers": lambda x: (1 - 2 * x) / 3 + 0.5,
    "add alpha": lambda x: torch.add(x, x * x, alpha=-0.5) - x,
    "chunk": lambda x: torch.cat([x.chunk(2, 2)[1] * 2.0, x.chunk(2, 2)[0]], dim=3),
    "split": lambda x: torch.split(x, [4, 4], dim=3)[1] - x.split(4, dim=3)[0],
    "shuffle": lambda x: (
        x.view(x.size(0), 3, 2, x.shape[2] // 2, 8).transpose(1, 2).contiguous().view(x.size(0), 6, 4, 8)
    ),
    "permute": lambda x: x.permute(0, 2, 3, 1).mean(dim=[1], keepdim=True) + x.mean((2, 3)).unsqueeze(1).unsqueeze(1),
    "index": lambda x: x[:, 1, 2:, ::2] + x[:, 0, :6, 1::2],
    "pools": lambda x: F.avg_pool2d(F.max_pool2d(x, 2), kernel_size=2, stride=1),
    "activations": lambda x: F.relu6(4 * x) + F.leaky_relu(x, 0.3) + F.hardtanh(x, -0.1, 0.1) + torch.neg(x).abs(),
    "pad": lambda x: F.pad(x, (1, 0, 0, 2), value=0.5),
    "softmax": lambda x: F.softmax(x, dim=1) + x.tanh() + torch.sigmoid(x),
    "pixel shuffle": lambda x: F.pixel_shuffle(torch.cat([x] * 4, 1), 2),
}


class Wrapped(nn.Module):
    def __init__(self, operation):
        super().__init__()
        self.operation = operation

    def forward(self, x):
        return torch.flatten(self.operation(2 * x - 1), 1)


def agree(operation, path):
    """The file has the result of torch for one image and for five."""
    model = Wrapped(operation).eval()
    onnx_export.export(model, path, shape=(3, 8, 8))
    for count in (1, 5):
        pictures = quantized_networks.images(count, size=8)
        with torch.no_grad():
            assert_close(run(path, pictures), model(pictures / 255), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:BatchNorm stays")
@pytest.mark.parametrize("module", MODULES, ids=str)
def test_modules(module, tmp_path):
    torch.manual_seed(0)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.2, 0.9)
    agree(module, tmp_path / "x.onnx")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name, tmp_path):
    agree(FUNCTIONS[name], tmp_path / "x.onnx")


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        (lambda x: torch.cumsum(x, 1), "operation cumsum has no ONNX form here: cumsum"),
        (lambda x: x.cumsum(1), "operation cumsum has no ONNX form here: cumsum"),
        (lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True, divisor_override=2), "a divisor of its own"),
        (lambda x: x[torch.tensor([0, 1])], "an index that is neither a number nor a slice"),
    ],
)
def test_operations_without_a_form_are_named(operation, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        onnx_export.export(Wrapped(operation), tmp_path / "x.onnx", shape=(3, 8, 8))


def test_every_kind_of_operation_that_is_quantized_has_a_form():
    special = (*points._MODULES[points.WEIGHTED], *points._MODULES[points.NORMALIZATION], nn.PReLU)
    kinds = [kind for kinds in points._MODULES.values() for kind in kinds if kind not in special]
    known = [kind for kinds in onnx_operations._MODULES for kind in (kinds if isinstance(kinds, tuple) else (kinds,))]
    assert [kind.__name__ for kind in kinds if not issubclass(kind, tuple(known))] == []
    functions = [function for functions in points._FUNCTIONS.values() for function in functions]
    functions += [name for names in points._METHODS.values() for name in names]
    assert [function for function in functions if onnx_operations.translator(function) is None] == []
