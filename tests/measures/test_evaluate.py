"""Accuracies, without and under attack: judged in float32 by the network itself, streamed, resumable."""

import functools

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.testing import assert_close

from rqlib import models
from rqlib.attacks import methods
from rqlib.core import layers, runtime
from rqlib.core.projections import Linf
from rqlib.core.vocabulary import ImageSpec
from rqlib.measures import evaluate
from tests import robust_networks

PGD = functools.partial(methods.pgd, ball=Linf(0.1), step_size=0.02, steps=10)
SPEC = ImageSpec(1, 8, 8, 10, (0.3,), (0.4,))


@pytest.fixture
def images():
    return torch.randint(0, 256, (37, 3, 8, 8), dtype=torch.uint8), torch.randint(0, 4, (37,))


def evaluation_set(count=120):
    x, y = robust_networks.images(count)
    return (x * 255).round().to(torch.uint8), y


def natural():
    return robust_networks.trained(adversarial=False)


def right(model, x, y):
    with torch.no_grad():
        return model(x).argmax(1) == y


def test_logits_do_not_depend_on_the_batch_size(images):
    model = nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4), nn.Flatten())
    whole = evaluate.logits(model, *images, batch_size=37)
    assert_close(evaluate.logits(model, *images, batch_size=5), whole, rtol=1e-5, atol=1e-5)
    assert_close(whole, model.eval()(images[0] / 255).detach(), rtol=1e-5, atol=1e-5)


def test_accuracy_counts_by_hand_and_leaves_the_model_as_it_was(images):
    class Brightest(nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    labels = (images[0] / 255).mean((2, 3)).argmax(1)
    wrong = labels.clone()
    wrong[:10] = (wrong[:10] + 1) % 3
    model = Brightest().train()
    assert evaluate.accuracy(model, images[0], labels) == 1.0
    assert evaluate.accuracy(model, images[0], wrong) == pytest.approx(27 / 37)
    assert model.training
    assert evaluate.correct(model, images[0], wrong).tolist() == [False] * 10 + [True] * 27


def test_accuracy_under_attack_is_what_the_attack_leaves():
    images, labels = evaluation_set()
    x = images / 255
    expected = torch.cat(
        [right(natural(), PGD(natural(), *part), part[1]) for part in zip(x.split(50), labels.split(50), strict=True)]
    )
    found = evaluate.correct(natural(), images, labels, attack=PGD, batch_size=50)
    assert (found == expected).float().mean() >= 0.98, "up to rounding of the folded network"
    accuracy = evaluate.accuracy(natural(), images, labels, attack=PGD, batch_size=50)
    assert accuracy == pytest.approx(found.float().mean().item())


def test_era_is_below_every_single_run():
    images, labels = evaluation_set(60)
    model, ball = robust_networks.trained(adversarial=True), Linf(0.1)
    era = evaluate.era(model, images, labels, ball=ball, steps=20, restarts=4)
    single = functools.partial(methods.pgd, ball=ball, step_size=2.5 * 0.1 / 20, steps=20)
    assert era <= evaluate.accuracy(model, images, labels, attack=single)
    assert 0 < era < evaluate.accuracy(model, images, labels)


def test_transfer_matrix():
    images, labels = evaluation_set(100)
    pair = {"natural": natural(), "adversarial": robust_networks.trained(adversarial=True)}
    matrix = evaluate.transfer_matrix(pair, images, labels, attack=PGD, batch_size=30)
    assert list(matrix.index) == list(matrix.columns) == list(pair)
    assert (matrix.index.name, matrix.columns.name) == ("source", "target")
    for name, model in pair.items():
        direct = evaluate.accuracy(model, images, labels, attack=PGD, batch_size=30)
        assert matrix.loc[name, name] == pytest.approx(direct, abs=0.011)
        assert (matrix.loc[name, name] <= matrix[name]).all(), "white-box is the strongest"


def test_bfloat16_success_is_confirmed_in_float32():
    """In bfloat16 nearly tied logits flip; no image may count as fooled, or be given up, on their account."""

    class Coarse(nn.Module):
        """Right by a margin that bfloat16 cannot see, as long as the mean pixel is below 0.6."""

        def __init__(self):
            super().__init__()
            self.margin = nn.Linear(1, 1, bias=False)
            self.margin.weight.data.fill_(1.0)
            self.seen = []

        def forward(self, x):
            score = self.margin(0.6 - x.mean((1, 2, 3))[:, None]).float()
            self.seen.append(torch.is_autocast_enabled("cpu"))
            noise = 0.2 if torch.is_autocast_enabled("cpu") else 0.0
            return 10 + torch.cat([score - noise, torch.zeros_like(score)], 1)

    images, labels = torch.full((3, 1, 4, 4), 128, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)
    model = Coarse()
    runtime.use("cpu", "bfloat16")  # the fixture puts the policy back
    attack = functools.partial(methods.pgd, ball=Linf(0.15), step_size=0.05, steps=5, active_set=True)
    assert not evaluate.correct(model, images, labels, attack=attack).any(), "attacked again where bfloat16 gave up"
    assert model.seen[-1] is False, "the last word is float32"
    weak = functools.partial(methods.pgd, ball=Linf(0.05), step_size=0.05, steps=5, active_set=True)
    assert evaluate.correct(model, images, labels, attack=weak).all()


def test_fast_twin_is_the_same_function_without_batchnorm():
    model = models.build("SmallCNN", ImageSpec()).train()
    with torch.no_grad():
        model(torch.rand(64, 3, 32, 32))
    model.eval()
    x = torch.rand(8, 3, 32, 32)
    twin = evaluate.fast_twin(model, x)
    assert not list(layers.batchnorms(twin))
    assert list(layers.batchnorms(model))
    assert not any(parameter.requires_grad for parameter in twin.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert_close(twin(x), model(x), rtol=1e-4, atol=1e-4)


class Branching(nn.Module):
    """A forward that torch.fx cannot trace."""

    def forward(self, x):
        return (x if x.mean() > 0 else -x).mean((2, 3)).expand(-1, 10)


class Double(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_fast_twin_is_the_model_itself_where_folding_is_not_possible():
    x = torch.rand(4, 1, 8, 8)
    assert evaluate.fast_twin(model := Branching(), x).__dict__ is model.__dict__
    parametrized = models.build("CNN_small", SPEC)
    parametrize.register_parametrization(
        next(layer for _, layer in layers.weighted_layers(parametrized)), "weight", Double()
    )
    assert evaluate.fast_twin(parametrized, x) is parametrized
    transformed = models.build("CNN_small", SPEC)
    layers.attach_input_transform([layer for _, layer in layers.weighted_layers(transformed)], nn.Identity)
    assert evaluate.fast_twin(transformed, x) is transformed


def test_a_twin_that_computes_something_else_is_not_attacked(monkeypatch):
    """Linear then BatchNorm1d over tokens, folded as if it normalized features."""
    torch.manual_seed(0)
    parts = (nn.Flatten(2), nn.Linear(64, 3), nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(9, 4))
    model = nn.Sequential(*parts)
    nn.init.uniform_(model[2].running_var, 0.1, 2)
    x = torch.rand(5, 3, 8, 8)
    images, labels = (x * 255).to(torch.uint8), torch.zeros(5, dtype=torch.int64)
    expected = evaluate.correct(model, images, labels, attack=PGD)
    monkeypatch.setattr(layers, "_normalizes_outputs", lambda *_: True)
    words = "folding BatchNorm changes what Sequential computes: .* first layer whose output differs is 2; the network"
    with pytest.warns(UserWarning, match=words):
        assert evaluate.fast_twin(model, x) is model
    with pytest.warns(UserWarning, match=words):
        assert torch.equal(evaluate.correct(model, images, labels, attack=PGD), expected)


def test_interrupted_evaluation_goes_on_and_gives_the_same(tmp_path):
    images, labels = evaluation_set(100)
    whole = evaluate.correct(natural(), images, labels, attack=PGD, batch_size=20)
    calls = []

    def fails_at_the_third(model, x, y):
        calls.append(len(x))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return PGD(model, x, y)

    path = tmp_path / "pgd.pt"
    with pytest.raises(KeyboardInterrupt):
        evaluate.correct(natural(), images, labels, attack=fails_at_the_third, batch_size=20, checkpoint=path)
    assert torch.equal(torch.load(path, weights_only=True)["correct"], whole[:40])
    again = evaluate.correct(natural(), images, labels, attack=fails_at_the_third, batch_size=20, checkpoint=path)
    assert torch.equal(again, whole)
    assert calls == [20] * (3 + 3), "two batches were kept, three were left"
    evaluate.correct(natural(), images, labels, attack=fails_at_the_third, batch_size=20, checkpoint=path)
    assert len(calls) == 6, "nothing is left to do"


def test_checkpoint_of_another_evaluation_is_refused(tmp_path):
    images, labels = evaluation_set(20)
    path = tmp_path / "pgd.pt"
    evaluate.correct(natural(), images, labels, attack=PGD, checkpoint=path)
    weaker = functools.partial(methods.pgd, ball=Linf(0.05), step_size=0.02, steps=10)
    other = robust_networks.trained(adversarial=True)
    for model, seen, attack in (
        (natural(), images.flip(3), PGD),
        (natural(), images, weaker),
        (other, images, PGD),
    ):
        with pytest.raises(ValueError, match="belongs to another evaluation: "):
            evaluate.correct(model, seen, labels, attack=attack, checkpoint=path)


@pytest.mark.parametrize("measure", [evaluate.correct, evaluate.accuracy, evaluate.logits])
@pytest.mark.parametrize("attack", [None, PGD])
def test_no_images_are_refused(measure, attack):
    with pytest.raises(ValueError, match="expected at least one image to evaluate, got none"):
        measure(natural(), *evaluation_set(0), attack=attack)


def test_era_defaults_are_fifty_steps_and_ten_restarts(monkeypatch):
    seen = {}

    def pgd(model, x, y, **settings):
        seen.update(settings)
        return x

    monkeypatch.setattr(methods, "pgd", pgd)
    evaluate.era(natural(), *evaluation_set(4), ball=Linf(0.1))
    assert (seen["steps"], seen["restarts"], seen["active_set"]) == (50, 10, True)
    assert seen["step_size"] == pytest.approx(2.5 * 0.1 / 50)
