"""Networks as strangers bring them: one row for each kind of fault, in several variants.

Each row is a function without arguments that fails if the library treats networks of its kind wrongly.
"""

import contextlib
import copy
import functools
import itertools
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.testing import assert_close

from rqlib import data, measures, pruning, quantization
from rqlib.attacks import pgd
from rqlib.core import derived, layers, parametrizations
from rqlib.core.entry import classifier
from rqlib.core.projections import Linf
from rqlib.core.vocabulary import ImageSpec
from rqlib.pruning import algorithms, factors, masks, savings
from rqlib.quantization import integer
from rqlib.training import objectives
from rqlib.training.recipes import Recipe

IMAGES = torch.randint(0, 256, (24, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PIXELS = IMAGES / 255
LABELS = torch.arange(24) % 4
SPEC = ImageSpec(3, 8, 8, 4)
PGD = functools.partial(pgd, ball=Linf(0.05), step_size=0.02, steps=4)


class Net(nn.Module):
    """A network of which each variant changes one thing."""

    def __init__(self, **parts: nn.Module):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
        self.head = nn.Linear(24, 4)
        for name, part in parts.items():
            setattr(self, name, part)

    def logits(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x)


def seen(model: nn.Module) -> nn.Module:
    """The network in eval mode, after its BatchNorms have seen images and got weights of their own."""
    torch.manual_seed(1)
    for _, norm in layers.batchnorms(model):
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.3, 2)
            nn.init.normal_(norm.bias)
    model.train()
    with torch.no_grad():
        for _ in range(20):
            model(PIXELS)
    return model.eval()


def exactly(model: nn.Module, oracle: Callable[[Tensor], Tensor]) -> None:
    """The library's logits, cost, traced and folded forms, and attack agree with an oracle in float64."""
    expected = oracle(PIXELS.double()).detach()
    found = measures.logits(model, IMAGES, LABELS, batch_size=10)
    assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    network = classifier(model)
    derived.check(network, derived.traced(network, PIXELS), PIXELS, what="tracing")
    derived.check(network, layers.fold_batchnorm(network), PIXELS, what="folding")
    assert len(measures.profile(model, SPEC))
    attacked = measures.accuracy(model, IMAGES, expected.argmax(1), attack=PGD, batch_size=10)
    assert attacked <= 1


def double(model: nn.Module) -> nn.Module:
    """A copy in float64, which later changes do not touch, in the usual memory format."""
    return copy.deepcopy(model).double().eval().to(memory_format=torch.contiguous_format)


@contextlib.contextmanager
def refused(words: str, kind: type[Exception] = ValueError) -> Iterator[None]:
    with pytest.raises(kind, match=words):
        yield


class Mixer(nn.Module):
    """Linear, then BatchNorm1d over the tokens."""

    def __init__(self, features: int):
        super().__init__()
        self.patch, self.mix, self.norm = nn.Conv2d(3, 8, 2, 2), nn.Linear(16, features), nn.BatchNorm1d(8)
        self.out = nn.Linear(8 * features, 4)

    def forward(self, x):
        return self.out(F.relu(self.norm(self.mix(self.patch(x).flatten(2)))).flatten(1))


class Reshaped(nn.Module):
    """A convolution whose result is reshaped before it is normalized, and a BatchNorm1d after a Conv1d."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(4)
        self.line, self.line_norm, self.out = nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), nn.Linear(6, 4)

    def forward(self, x):
        h = self.norm(self.conv(x).reshape(x.shape[0], 4, 16, 8)).relu()
        return self.out(self.line_norm(self.line(h.flatten(2))).relu().mean(2))


def batchnorm_along_another_axis():
    for model, folded in ((Mixer(8), 0), (Mixer(12), 0), (Reshaped(), 1)):
        model = seen(model)
        assert len(layers.foldable_pairs(model)) == folded
        exactly(model, double(model))
    heads = (
        nn.Sequential(
            nn.Flatten(), nn.Linear(192, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4), nn.BatchNorm1d(4)
        ),
        nn.Sequential(nn.Flatten(2), nn.Linear(64, 3), nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(9, 4)),
    )
    for model, folded in zip(heads, (2, 0), strict=True):
        model = seen(model)
        assert len(layers.foldable_pairs(model)) == folded
        exactly(model, double(model))


class WeightReadElsewhere(Net):
    def forward(self, x):
        first = self.body[0]
        return self.logits(x) + first.weight.mean() + F.conv2d(x, first.weight).mean((1, 2, 3))[:, None]


def layer_whose_weight_is_read_elsewhere():
    model = seen(WeightReadElsewhere())
    assert layers.foldable_pairs(model) == []
    exactly(model, double(model))


class TwoNames(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.features = nn.Sequential(self.conv, self.norm, nn.ReLU())
        self.fc = nn.Linear(8, 4)
        self.all = nn.ModuleList([self.conv, self.fc])

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3)))


def module_with_two_names():
    model = seen(TwoNames())
    folded = layers.fold_batchnorm(model)
    assert not list(layers.batchnorms(folded))
    assert [name for name, _ in layers.weighted_layers(folded)] == ["conv", "fc"]
    assert folded.conv is folded.features[0] is folded.all[0]
    assert measures.profile(model, SPEC).layer.tolist() == ["conv", "norm", "fc"]
    assert measures.storage(model)["other_bits"] == 32 * (8 + 4 * 8 + 4) + 64
    exactly(model, double(model))


class TwoLayersOneParameter(Net):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(24, 24), nn.Linear(24, 24)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.head(self.second(self.first(self.body(x).flatten(1)).relu()))


def two_layers_with_one_parameter():
    model = seen(TwoLayersOneParameter())
    frame = measures.profile(model, SPEC).set_index("layer")
    assert frame.params.sum() == sum(parameter.numel() for parameter in model.parameters())
    assert frame.loc[["first", "second"], "params"].tolist() == [24 * 24 + 24, 24]
    assert frame.loc["first", "macs"] == frame.loc["second", "macs"] == 24 * 24
    assert measures.storage(model)["dense_bits"] == 32 * (6 * 27 + 24 * 24 + 24 * 4)
    state = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}.values()
    everything = sum(8 * tensor.element_size() * tensor.numel() for tensor in state)
    assert measures.storage(model)["dense_bits"] + measures.storage(model)["other_bits"] == everything
    exactly(model, double(model))


class Standardized(nn.Conv2d):
    """Weight standardization: another function of the weight."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5), self.bias)


class Same(nn.Conv2d):
    """Padding to the same size, before the convolution."""

    def forward(self, x):
        return super().forward(F.pad(x, (0, 2, 0, 2)))


class SameInside(nn.Conv2d):
    """The same by the inner method, with a forward pass that looks like torch's."""

    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(F.pad(x, (0, 2, 0, 2)), weight, bias)


class Named(nn.Conv2d):
    """A subclass that computes what torch's class does."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.note = "mine"


class NormThenRelu(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


def subclasses_of_layers():
    for kind in (Standardized, Same, SameInside, Named):
        model = Net()
        model.body[0] = kind(3, 6, 3)
        model = seen(model)
        names = [name for name, _ in layers.weighted_layers(model)]
        assert names == (["body.0", "head"] if kind is Named else ["head"])
        assert layers.foldable_pairs(model) == ([("body.0", "body.1")] if kind is Named else [])
        exactly(model, double(model))
    model = Net()
    model.body[1] = NormThenRelu(6)
    exactly(model := seen(model), double(model))
    model = Net()
    model.body[0].forward = lambda x, conv=model.body[0]: 2 * nn.Conv2d.forward(conv, x)
    assert [name for name, _ in layers.weighted_layers(model)] == ["head"]


class Training(Net):
    """The eval mode computes something else than the train mode."""

    def forward(self, x):
        return self.logits(x) if self.training else 2 * self.logits(x)


def eval_mode_is_traced():
    exactly(model := seen(Training()), double(model))
    model.train()
    derived.traced(classifier(model), PIXELS)
    assert model.training


class InPlace(Net):
    def forward(self, x):
        y = x - 0.5
        skip = y
        y += 1.0
        return self.logits(skip)


class FixedNoise(Net):
    def forward(self, x):
        return self.logits(x + torch.rand(3, 8, 8))


class ByBatch(Net):
    """The trace keeps the branch of the batch that it was made with."""

    def forward(self, x):
        return self.logits(x) * (1 if type(x) is Tensor else 3)


def tracing_that_bakes_in_what_depends_on_the_call():
    for kind in (InPlace, FixedNoise, ByBatch):
        model = seen(kind())
        with refused(rf"tracing \(torch.fx\) changes what {kind.__name__} computes: the logits of 24 images differ by"):
            derived.traced(classifier(model), PIXELS)
        folded = layers.fold_batchnorm(classifier(model))
        derived.check(model, folded, PIXELS, what="folding")  # it calls the network's own forward pass


class Remembers(Net):
    """Keeps what it has seen as attributes."""

    def forward(self, x):
        self.last = self.logits(x)
        self.calls = getattr(self, "calls", 0) + 1
        return self.last


def network_that_keeps_tensors():
    model = seen(Remembers())
    model(PIXELS)
    assert not model.last.is_leaf
    kept, calls = model.last, model.calls
    layers.trace(model)
    assert model.last is kept
    assert model.calls == calls
    parametrizations.bake(model)
    layers.fold_batchnorm(model)
    measures.logits(model, IMAGES, LABELS)


class ViewOfSize(Net):
    def forward(self, x):
        x = self.body(x)
        return self.head(x.view(x.size(0), -1))


class ViewOfTuple(Net):
    def forward(self, x):
        return self.head(self.body(x).view((x.shape[0], 24)))


class ViewAs(Net):
    def forward(self, x):
        return self.head(self.body(x).view_as(x.new_empty(x.shape[0], 24)))


class ViewOfList(Net):
    def forward(self, x):
        return self.head(self.body(x).view([x.shape[0], 24]))


class Shuffled(Net):
    def forward(self, x):
        b, c, h, w = (x := self.body(x)).shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, c, h, w)
        return self.head(x.view(b, -1))


def view_in_every_memory_format():
    for kind in (ViewOfSize, ViewOfTuple, ViewOfList, ViewAs, Shuffled):
        model = seen(kind())
        exactly(model, double(model))
        exactly(nn.Sequential(nn.Identity(), model), double(model))


def weights_that_hooks_compute():
    wraps = {
        "weight_norm": nn.utils.weight_norm,
        "weight_norm, one length": functools.partial(nn.utils.weight_norm, dim=None),
        "spectral_norm": nn.utils.spectral_norm,
        "prune": functools.partial(prune.l1_unstructured, name="weight", amount=0.5),
        "prune twice": lambda layer: prune.random_unstructured(
            prune.ln_structured(layer, "weight", 0.3, 2, 0), "bias", 1
        ),
    }
    for name, wrap in wraps.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            model = Net()
            wrap(model.body[0])
            wrap(model.head)
        if name != "prune twice":
            model.head.bias.requires_grad_(False)
        seen(model)(PIXELS)
        plain = classifier(model)
        assert plain is not model
        assert type(plain) is type(classifier(Net()))
        assert plain.state_dict().keys() == Net().state_dict().keys(), name
        assert all(parameter.requires_grad for key, parameter in plain.named_parameters() if key != "head.bias")
        assert list(model.state_dict()) != list(plain.state_dict()), "the network itself stays as it was"
        oracle = Net()
        oracle.load_state_dict(plain.state_dict())
        assert_close(plain(PIXELS), model(PIXELS))
        exactly(model, double(oracle))
        parametrizations.bake(model)


class Temperature(Net):
    def forward(self, x, temperature=2.0):
        return self.logits(x) / temperature


class Masked(Net):
    def forward(self, x, mask=None, *, scale: float = 3.0):
        return scale * self.logits(x if mask is None else x * mask)


class Keywords(Net):
    def forward(self, x, *more, **settings):
        return self.logits(x) + len(more) + len(settings)


class Requires(Net):
    def forward(self, x, mask, *, scale):
        return self.logits(x)


class NoImage(Net):
    def forward(self, *, pixel_values=None):
        return self.logits(pixel_values)


def further_arguments():
    for kind in (Temperature, Masked, Keywords):
        model = seen(kind())
        exactly(model, double(model))
        exactly(nn.Sequential(nn.Identity(), model), double(model))
    with refused(
        r"expected Requires.forward to need the image alone, it also requires mask, scale; give them defaults"
    ):
        classifier(Requires())
    with refused("expected the image as first argument of NoImage.forward, got pixel_values=None by name only"):
        classifier(NoImage())
    with refused("expected a torch.nn.Module, got function", TypeError):
        classifier(further_arguments)


class Several(Net):
    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(self.logits(x), self.body(x))


class Output:
    def __init__(self, logits, hidden):
        self.logits, self.hidden = logits, hidden


def several_outputs():
    wraps = (
        lambda z, h: (z, h),
        lambda z, h: [z],
        lambda z, h: {"features": h, "logits": z},
        lambda z, h: ((z, h), h),
        Output,
    )
    for wrap in wraps:
        model = seen_several(wrap)
        exactly(model, double(model).logits)
        exactly(nn.Sequential(nn.Identity(), model), double(model).logits)
    for wrap, words in (
        (lambda z, h: None, "NoneType"),
        (lambda z, h: {"out": z, "aux": h}, "dict with out, aux"),
        (lambda z, h: (), "tuple"),
    ):
        with refused(rf"expected logits from the network: a tensor, .*, got {words}; put the network into"):
            measures.logits(seen_several(wrap), IMAGES, LABELS)


def seen_several(wrap) -> nn.Module:
    return seen(Several(wrap))


def logits_of_another_shape():
    one = nn.Sequential(nn.Flatten(), nn.Linear(192, 1))
    with refused(r"expected logits \(24, K\) of at least two classes, got \(24, 1\); for one output z return"):
        measures.accuracy(one, IMAGES, LABELS)
    with refused(r"expected logits \(24, K\) of at least two classes, got \(24, 4, 6, 6\)$"):
        measures.accuracy(nn.Conv2d(3, 4, 3), IMAGES, LABELS)
    with refused("expected labels below 2, the number of logits, got 3"):
        measures.accuracy(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), IMAGES, LABELS)


def wrapped_networks():
    model = seen(Net())
    for wrapped in (torch.compile(model), nn.DataParallel(model), torch.compile(nn.DataParallel(model))):
        assert classifier(wrapped).body is model.body
        exactly(wrapped, double(model))
    inside = nn.Sequential(nn.Identity(), torch.compile(model))
    assert list(classifier(inside).state_dict()) == [f"1.{key}" for key in model.state_dict()]
    exactly(inside, double(model))
    compiled = copy.deepcopy(model)
    compiled.compile()
    assert classifier(compiled)._compiled_call_impl is None
    exactly(compiled, double(model))


def other_precisions():
    for model in (seen(Net()), seen(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)))):
        exactly(double(model), double(model))
        assert measures.logits(double(model), IMAGES, LABELS).dtype == torch.float32
        for dtype in (torch.float16, torch.bfloat16):
            half = copy.deepcopy(model).to(dtype)
            with pytest.warns(UserWarning, match=f"weights are {str(dtype)[6:]}: computed in a float32 copy"):
                network = classifier(half)
            exactly(network, double(half))
            assert next(half.parameters()).dtype == dtype


def batchnorm_without_running_statistics():
    model = Net()
    model.body[1] = nn.BatchNorm2d(6, track_running_stats=False)
    model.eval()
    with pytest.warns(UserWarning, match=r"BatchNorm without running statistics: body\.1; each batch is normalized"):
        network = classifier(model)
    assert layers.foldable_pairs(network) == []
    with pytest.warns(UserWarning, match="BatchNorm without running statistics"):
        found = measures.logits(model, IMAGES, LABELS, batch_size=24)
    assert_close(found.double(), double(model)(PIXELS.double()).detach(), rtol=1e-4, atol=1e-5)


def convolutions_in_three_dimensions():
    for norm in (nn.Identity(), nn.BatchNorm3d(4)):
        layer = nn.Conv3d(1, 4, 3, padding=1)
        model = nn.Sequential(nn.Unflatten(1, (1, 3)), layer, norm, nn.ReLU(), nn.Flatten(), nn.Linear(768, 4))
        exactly(model := seen(model), double(model))


def networks_that_are_graphs():
    graph = torch.fx.symbolic_trace(seen(ViewOfSize()))
    exactly(graph, double(graph))
    graph = torch.fx.symbolic_trace(seen(Temperature()))
    exactly(graph, double(graph))
    scripted = torch.jit.script(seen(Net()))
    assert_close(measures.logits(scripted, IMAGES, LABELS), scripted(PIXELS).detach())


class Skip(Net):
    """What the activation does in place is read by the skip, too."""

    def __init__(self, change):
        super().__init__()
        self.first, self.second, self.same, self.change = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1), nn.Identity(), change

    def logits(self, x):
        x = self.first(x)
        x = self.same(x) + self.second(self.change(x))
        return self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))


IN_PLACE = (
    *(nn.ReLU(True), nn.ReLU6(True), nn.LeakyReLU(0.1, True), nn.SiLU(True), nn.Hardswish(True), nn.ELU(1.0, True)),
    *(
        nn.Hardtanh(-0.2, 0.3, True),
        nn.Hardsigmoid(True),
        nn.Mish(True),
        nn.CELU(1.0, True),
        nn.Threshold(0, 0.2, True),
    ),
    *(F.relu_, F.hardtanh_, F.leaky_relu_, torch.sigmoid_, lambda x: F.relu6(x, inplace=True)),
    *(lambda x: x.relu_(), lambda x: x.add_(0.5), lambda x: x.mul_(2).clamp_(0, 1)),
    *(lambda x: torch.relu_(x.view(x.shape)), lambda x: F.dropout(x, 0.5, False).tanh_()),
)


class Increment(Skip):
    def logits(self, x):
        y = x = self.first(x)
        y += 1
        return self.head(F.adaptive_avg_pool2d(x + self.second(y).exp(), 2).flatten(1))


def in_place_operations_before_a_skip():
    for change in IN_PLACE:
        model = seen(Skip(change))
        expected = double(model)(PIXELS.double()).detach()
        network = quantization.ptq(model, "INT_16", IMAGES)
        for found in (
            network(PIXELS),
            integer.lower(network)(PIXELS),
            integer.lower(network, arithmetic="float32")(PIXELS),
        ):
            assert_close(found.double().detach(), expected, rtol=0.02, atol=0.02 * expected.abs().max().item())
    with refused(r"tracing \(torch.fx\) changes what Increment computes: .*activations=False"):
        quantization.ptq(seen(Increment(nn.Identity())), "INT_8", IMAGES)
    with refused(r"operation copy_ \(copy_\) changes a tensor in place and has no other form that is known here"):
        quantization.ptq(seen(Skip(lambda x: x.copy_(x.exp()))), "INT_8", IMAGES)


class Channels(nn.Module):
    """Linear layers along the last of four axes, and axes of one element."""

    def __init__(self, channels: int, height: int):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.mix, self.out = nn.Conv2d(3, channels, (height, 1)), nn.Linear(channels, 7), nn.Linear(7, 4)

    def forward(self, x):
        return self.out(self.mix(self.stem(x).permute(0, 2, 3, 1)).relu().mean((1, 2)))


def codes_at_every_batch_size():
    for channels, height in ((1, 1), (1, 8), (5, 8), (64, 1)):
        network = quantization.ptq(Channels(channels, height).eval(), "INT_8", IMAGES)
        lowered = integer.lower(network, batch_size=300)
        many = PIXELS.double().repeat(90, 1, 1, 1)
        expected = torch.cat([lowered(x[None]) for x in PIXELS.double()]).repeat(90, 1)
        for layout in (torch.contiguous_format, torch.channels_last):
            assert torch.equal(lowered(many.contiguous(memory_format=layout)), expected)


def biases_that_their_unit_cannot_hold():
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)
    ).eval()
    model[0].weight.data[:8] = 0
    model[0].bias.data.uniform_(0.5, 1.5)
    for format, granularity in (("INT_8", "tensor"), ("INT_8", "channel"), ("INT_16", "tensor"), ("POT_4", "channel")):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            network = quantization.ptq(model, format, IMAGES, granularity=granularity, bias="seed")
        clipped = (format, granularity) in (("INT_8", "channel"), ("INT_16", "tensor"))
        assert any("biases are larger than their format holds" in str(one.message) for one in said) == clipped
        assert_close(network.get_submodule("0").bias, model[0].bias, rtol=0.34 if "POT" in format else 0.01, atol=0)


def quantized_in_three_dimensions_and_other_precisions():
    norms = (nn.Identity(), nn.BatchNorm3d(4))
    for layer in (
        nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), norm, nn.ReLU(), nn.MaxPool3d((1, 2, 2))) for norm in norms
    ):
        model = seen(nn.Sequential(nn.Unflatten(1, (1, 3)), layer, nn.Flatten(), nn.Linear(192, 4)))
        expected = model(PIXELS).detach()
        for network in (model, copy.deepcopy(model).double()):
            quantized = quantization.ptq(network, "INT_8", IMAGES)
            found = integer.lower(quantized, arithmetic="float32")(PIXELS)
            assert_close(found, expected, rtol=0.05, atol=0.05 * expected.abs().max().item())
    with pytest.warns(UserWarning, match="weights are float16: computed in a float32 copy"):
        quantized = quantization.ptq(copy.deepcopy(model).half(), "INT_8", IMAGES)
    assert_close(quantized(PIXELS).detach(), expected, rtol=0.05, atol=0.05 * expected.abs().max().item())


def phase_of_pruning() -> algorithms.Phase:
    split = data.Split(IMAGES, LABELS)
    images = data.ImageDataset("x", "x", split, split, split, SPEC, tuple("abcd"), False, torch.arange(24))
    return algorithms.Phase(images, objectives.natural, Recipe(2, batch_size=12, lr=0.05, augment=False))


def pruned_and_smaller(model: nn.Module) -> nn.Module:
    """The network, from which half of the channels are removed; every method prunes its weights and its channels."""
    original, phase = seen(model), phase_of_pruning()
    before, expected = copy.deepcopy(classifier(original).state_dict()), measures.logits(original, IMAGES, LABELS)
    for method, structure in itertools.product(algorithms.METHODS, ("weights", "filters")):
        masked = algorithms.run(method, original, 0.5, phase, phase, structure=structure)
        found = measures.logits(parametrizations.bake(masked), IMAGES, LABELS)
        assert_close(found, measures.logits(masked, IMAGES, LABELS))
        assert not torch.equal(found, expected)
        if structure == "weights":
            assert masks.achieved(masked).kept.between(0.49, 0.51).all()
        else:
            removed = pruning.remove_channels(parametrizations.bake(masked), phase.image)
            assert_close(measures.logits(removed, IMAGES, LABELS), found, rtol=1e-4, atol=1e-4)
            parameters = [sum(p.numel() for p in network.parameters()) for network in (removed, classifier(original))]
            assert parameters[0] < 0.8 * parameters[1]
    state = classifier(original).state_dict()
    assert all(torch.equal(value, before[key]) for key, value in state.items()), "the network stays as it was"
    return removed


def pruning_of_shared_weights():
    removed = pruned_and_smaller(TwoLayersOneParameter())
    assert removed.first.weight is removed.second.weight
    masked = pruning.apply_masks(
        model := seen(TwoLayersOneParameter()), pruning.magnitude_masks(model, 0.25, structure="weights")
    )
    assert pruning.check_masks(masked, 0.25).layer.tolist() == ["body.0", "head", "first"]
    assert torch.equal(masked.first.weight, masked.second.weight)
    assert masked.second.weight.count_nonzero() == 24 * 24 / 4
    baked = parametrizations.bake(masked)
    assert baked.first.weight is baked.second.weight
    removed = pruned_and_smaller(TwoNames())
    assert removed.conv is removed.features[0] is removed.all[0]


class Transposed(Net):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(6, 6, 3, padding=1)

    def logits(self, x):
        x = self.up(self.body[0](x))
        return self.head(self.body[1:](x).flatten(1))


def pruning_says_which_layers_it_leaves_alone():
    own = Net()
    own.body[0] = Standardized(3, 6, 3)
    for name, model in (("up", Transposed()), ("body.0", own)):
        words = f"left as they are, .* transposed convolutions or have a forward pass of their own: {name}$"
        with pytest.warns(UserWarning, match=words):
            masked = pruning.apply_masks(model, pruning.magnitude_masks(model, 0.25))
        layer = parametrizations.bake(masked).get_submodule(name)
        assert torch.equal(layer.weight, model.get_submodule(name).weight)
        with pytest.warns(UserWarning, match=words):
            factors.say_left_alone(model)
        assert name not in factors.layer_names(model)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("default")
            for kept in (0.1, 0.25):
                pruning.apply_masks(model, pruning.magnitude_masks(model, kept))
            factors.say_left_alone(model)
        assert len(said) == 1
        everything = sum(p.numel() for key, p in model.named_parameters() if p.dim() > 1 and "weight" in key)
        assert savings._dense_bytes(parametrizations.bake(masked)) == 4 * everything


class CalledTwice(Net):
    def __init__(self):
        super().__init__()
        self.again = nn.Conv2d(6, 6, 3, padding=1)

    def logits(self, x):
        x = self.body[1](self.body[0](x)).relu()
        return self.head(self.body[3](self.again(F.silu(self.again(x)))).flatten(1))


def pruning_of_a_layer_that_is_called_twice():
    removed = pruned_and_smaller(CalledTwice())
    assert removed.again.weight.shape == (3, 3, 3, 3)


def pruning_of_networks_as_they_come():
    for wrap in (nn.utils.weight_norm, nn.utils.spectral_norm, lambda one: prune.l1_unstructured(one, "weight", 0.2)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            model = Net()
            wrap(model.body[0])
            wrap(model.head)
        pruned_and_smaller(model)
    pruned_and_smaller(Temperature())
    pruned_and_smaller(Several(lambda logits, hidden: {"hidden": hidden, "logits": logits}))
    pruned_and_smaller(nn.DataParallel(Net()))
    pruned_and_smaller(torch.compile(Net()))


class Branches(Net):
    def forward(self, x):
        return self.logits(x) if x.mean() > 0 else self.logits(-x)


def pruning_of_what_cannot_be_traced():
    model, phase = seen(Branches()), phase_of_pruning()
    for method in algorithms.METHODS:
        masked = algorithms.run(method, model, 0.5, phase, phase)
        assert masks.check(masked, 0.5).kept.between(0.49, 0.51).all()
    with refused("torch.fx cannot trace Branches: .*structures weights and columns need no graph"):
        algorithms.run("lwm", model, 0.5, phase, None, structure="filters")


ROWS = (
    batchnorm_along_another_axis,
    layer_whose_weight_is_read_elsewhere,
    module_with_two_names,
    two_layers_with_one_parameter,
    subclasses_of_layers,
    eval_mode_is_traced,
    tracing_that_bakes_in_what_depends_on_the_call,
    network_that_keeps_tensors,
    view_in_every_memory_format,
    weights_that_hooks_compute,
    further_arguments,
    several_outputs,
    logits_of_another_shape,
    wrapped_networks,
    other_precisions,
    batchnorm_without_running_statistics,
    convolutions_in_three_dimensions,
    networks_that_are_graphs,
    in_place_operations_before_a_skip,
    codes_at_every_batch_size,
    biases_that_their_unit_cannot_hold,
    quantized_in_three_dimensions_and_other_precisions,
    pruning_of_shared_weights,
    pruning_says_which_layers_it_leaves_alone,
    pruning_of_a_layer_that_is_called_twice,
    pruning_of_networks_as_they_come,
    pruning_of_what_cannot_be_traced,
)


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:DeprecationWarning")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.__name__.replace("_", " "))
def test_odd_networks(row):
    row()
