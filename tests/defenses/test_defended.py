"""`defend` changes what it says and nothing else; a checkpoint of a defended network computes the same again."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from rqlib import defenses, models
from rqlib.core import layers
from rqlib.core.parametrizations import bake
from rqlib.core.vocabulary import ImageSpec
from rqlib.defenses import defended, noise

SPEC = ImageSpec()


def network(name: str = "SmallCNN") -> nn.Module:
    return models.build(name, SPEC, width=1.0 if name == "SmallCNN" else 0.125, seed=0)


def images(count: int = 8) -> torch.Tensor:
    return torch.rand(count, *SPEC.shape, generator=torch.Generator().manual_seed(1))


def test_the_plain_settings_change_nothing():
    model = network().eval()
    same = defenses.defend(model, **defended.PLAIN)
    assert same is not model
    assert torch.equal(same(images()), model(images()))


@pytest.mark.parametrize("name", ["SmallCNN", "ResNet_18"])
def test_every_relu_becomes_the_activation_and_the_network_given_stays(name):
    model = network(name)
    relus = [key for key, module in model.named_modules() if type(module) is nn.ReLU]
    made = defenses.defend(model, activation="DTReLU_4")
    assert len(relus) >= 4
    assert [type(made.get_submodule(key)) for key in relus] == [defenses.DTReLU] * len(relus)
    assert [key for key, module in model.named_modules() if type(module) is nn.ReLU] == relus


def test_a_relu_that_stands_in_two_places_becomes_one_activation():
    shared = nn.ReLU()
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), shared, nn.Linear(8, 8), shared, nn.Linear(8, 2))
    made = defenses.defend(model, activation="DTReLU_2")
    assert made[2] is made[4]
    assert made(torch.rand(3, 3, 2, 2)).shape == (3, 2)


def test_rounded_weights_have_few_values_and_are_trained_exactly():
    made = defenses.defend(network(), weight_format="range_3")
    _, layer = next(layers.weighted_layers(made))
    assert len(layer.weight.unique()) <= 8
    F.cross_entropy(made(images()), torch.zeros(8, dtype=torch.long)).backward()
    assert layer.parametrizations.weight.original.grad.abs().sum() > 0


def test_noise_makes_a_random_self_ensemble():
    made = defenses.defend(network(), noise_std=0.1).eval()
    assert isinstance(made, noise.SelfEnsemble)
    assert {module.std for module in made.modules() if isinstance(module, noise.Noise)} == {0.1, 0.05}


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.act, self.last = nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2)

    def forward(self, x):
        return self.last(F.relu(self.first(self.act(x.flatten(1)))))


def test_a_relu_that_is_a_function_stays_and_is_named():
    with pytest.warns(UserWarning, match=r"1 ReLUs that are functions, not modules, stay as they are \(relu\)"):
        made = defenses.defend(Functional(), activation="DTReLU_4")
    assert isinstance(made.act, defenses.DTReLU)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"activation": "DTRelu_4"}, "unknown activation.*DTReLU_4"),
        ({"activation": "DTReLU_9"}, "expected 1 to 8 bits"),
        ({"activation": "DTReLU"}, "unknown activation"),
        ({"weight_format": "INT_8"}, "unknown weight format"),
        ({"noise_std": -0.1}, "expected standard deviations >= 0"),
    ],
)
def test_bad_settings_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        defenses.defend(network(), **options)


def test_a_network_without_relu_is_refused():
    with pytest.raises(ValueError, match="expected a network with nn.ReLU modules to replace, got Sequential"):
        defenses.defend(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), activation="DTReLU_4")


@pytest.mark.parametrize(
    "settings",
    [
        {"activation": "DTReLU_4", "weight_format": "range_8"},
        {"activation": "DDTReLU_3", "weight_format": "LSQ_4"},
        {"activation": "jacob_ema_4"},
        {"noise_std": 0.1},
    ],
    ids=str,
)
def test_a_checkpoint_of_a_defended_network_computes_the_same(tmp_path, settings):
    made = defenses.defend(network(), **settings).train()
    for _ in range(2):
        F.cross_entropy(made(images(16)), torch.arange(16) % 10).backward()
    made.eval()
    path = models.save(tmp_path / "a.pt", bake(made), "SmallCNN", SPEC, changes={"defended": settings})
    opened, found = models.load(path)
    assert found["changes"] == {"defended": settings}
    assert not any(parametrize.is_parametrized(module) for module in opened.modules())
    opened.to(memory_format=torch.contiguous_format)  # noise is drawn in the order of memory
    torch.manual_seed(0)
    expected = made(images())
    torch.manual_seed(0)
    torch.testing.assert_close(opened(images()), expected)


def test_a_changed_network_without_its_changes_is_refused(tmp_path):
    made = defenses.defend(network(), activation="DTReLU_4")
    with pytest.raises(ValueError, match="found it changed .*or say the changes"):
        models.save(tmp_path / "a.pt", made, "SmallCNN", SPEC)
    with pytest.raises(ValueError, match="expected a change defended.*, got 'shrunk'"):
        models.save(tmp_path / "a.pt", network(), "SmallCNN", SPEC, changes={"shrunk": {}})


SETTINGS = {"activation": "DTReLU_4", "weight_format": "range_8", "noise_std": 0.1}


@pytest.mark.parametrize("settings", [SETTINGS, {"weight_format": "range_8"}, {"activation": "DTReLU_4"}])
def test_a_defended_network_is_defended_once_and_trained_further(settings, tmp_path):
    changes = {"defended": defended.PLAIN | settings}
    models.save(tmp_path / "a.pt", bake(defenses.defend(network(), **settings)), "SmallCNN", SPEC, changes=changes)
    model, found = models.load(tmp_path / "a.pt")
    again = defenses.defend(model, **settings, changes=found["changes"])
    assert any(map(parametrize.is_parametrized, again.modules())) == ("weight_format" in settings)
    models.save(tmp_path / "b.pt", bake(again), "SmallCNN", SPEC, changes=changes)


def test_other_defenses_than_the_network_has_are_refused():
    with pytest.raises(ValueError, match="has already, .*DTReLU_4.*, got none; give these, or begin with"):
        defenses.defend(network(), changes={"defended": defended.PLAIN | SETTINGS})
    plain = defenses.defend(network(), **SETTINGS, changes={"defended": defended.PLAIN})
    assert isinstance(plain, noise.SelfEnsemble)


def test_activations_of_other_kinds_stay_and_are_named():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Hardswish(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.warns(UserWarning, match="of other kinds than nn.ReLU stay as they are: 1 Hardswish"):
        made = defenses.defend(model, activation="DTReLU_4")
    assert isinstance(made[2], nn.Hardswish)
