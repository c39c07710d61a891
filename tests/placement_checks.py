"""Everything that a GPU computes runs on a pretend GPU, so that no node of a cluster is the first to find a tensor
on the wrong device: each chapter of the library, and the cells of the notebooks.

What this cannot show, and what only a real GPU does: assigning to ``tensor.data`` (`pruning.remove_channels`), autocast
and bfloat16, TF32, streams and timing (`measures.latency`), ``torch.cuda`` itself (memory, graphs, its random numbers),
``torch.func.vmap`` over networks (`training.fit_together`), reading a state back onto the device, int8 and graphs of
torch.compile, running out of memory, and kernels that differ in the last
bit. Times on it mean nothing.
"""

import json

import pytest
import torch

from rqlib import (
    attacks,
    certification,
    data,
    defenses,
    generator,
    measures,
    models,
    pruning,
    quantization,
    robustness,
    training,
)
from rqlib.attacks import methods
from rqlib.core import files, runtime
from rqlib.training import certified_objectives, objectives, recipes
from tests import pretend_gpu
from tests.notebooks import small
from tests.pruning import plans

BALL = attacks.Linf(8 / 255)
RECIPE = recipes.Recipe(1, batch_size=16, lr=0.01)


@pytest.fixture(autouse=True)
def gpu():
    with pretend_gpu.present():
        yield


@pytest.fixture
def images():
    return data.load("digits").take(train=32, validation=8, test=8)


@pytest.fixture
def network(images):
    return runtime.active().place(models.build("CNN_small", images.spec, width=0.5, seed=0)).eval()


@pytest.fixture
def with_batchnorm(images):
    return runtime.active().place(models.build("SmallCNN", images.spec, width=0.25, seed=0)).eval()


@pytest.fixture
def batch(images):
    return next(data.batches(*images.test, 8))


def test_the_device_refuses_what_a_gpu_refuses(network, batch):
    x, y = batch
    with torch.no_grad():
        logits = network(x)
        assert logits.device.type == pretend_gpu.NAME
        assert torch.equal(logits.cpu(), network.cpu()(x.cpu()))
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        x + torch.zeros(8, 3, 32, 32)
    with pytest.raises(RuntimeError, match="indices on pretend, tensor on cpu"):
        torch.zeros(10)[y]


@pytest.mark.parametrize("name", [*objectives.OBJECTIVES, *certified_objectives.CERTIFIED])
def test_training(images, network, name):
    loss, attack = training.robust(name, epsilon=8 / 255, step_size=8 / 255, steps=1)
    training.initialize(network, loss)
    history = training.fit(network, images, loss, RECIPE, attack=attack)
    assert history.loss.notna().all()


@pytest.mark.parametrize("penalty", ["cosine+spectral", "srip", "gram_rows"])
def test_training_with_a_penalty(images, network, penalty):
    added = defenses.penalty(penalty, network, images.spec.shape)
    training.fit(network, images, training.penalized(training.objective("natural"), added, 0.01), RECIPE)


def test_training_keeps_its_state(images, network, tmp_path):
    recipe = recipes.Recipe(2, batch_size=16, lr=0.01, ema_decay=0.9, clip_norm=1.0)
    training.fit(network, images, training.objective("natural"), recipe, checkpoint=tmp_path / "state.pt")
    assert len(files.load_tensors(tmp_path / "state.pt")["history"]) == 2


@pytest.mark.parametrize(
    "defense",
    [{"activation": "DTReLU_4", "weight_format": "range_8"}, {"activation": "jacob_ema_4", "weight_format": "LSQ_8"}]
    + [{"activation": "DDTReLU_4"}, {"noise_std": 0.05}],
    ids=str,
)
def test_defended_networks(images, network, batch, defense, tmp_path):
    defended = defenses.defend(network, **defense)
    training.fit(defended, images, training.objective("natural"), RECIPE)
    adversarial = attacks.pgd(defended, *batch, ball=BALL, step_size=0.01, steps=2)
    assert adversarial.device.type == pretend_gpu.NAME
    if not defense.get("noise_std"):
        robustness.stretched({"one": defended}, *batch)
        robustness.guaranteed({"one": defended}, *batch)


@pytest.mark.parametrize("name", methods.ATTACKS)
@pytest.mark.parametrize("ball", [BALL, attacks.L2(0.5)], ids=["Linf", "L2"])
def test_attacks(network, batch, name, ball):
    settings = {
        "fgsm": {"ball": ball},
        "pgd": {"ball": ball, "step_size": 0.01, "steps": 2, "restarts": 2, "eot_samples": 2},
        "noise": {"ball": ball, "samples": 2},
        "wrm": {"gamma": 1.0, "steps": 2},
    }
    adversarial = attacks.named(name, **settings[name])(network, *batch)
    assert adversarial.device.type == pretend_gpu.NAME


def test_quantization(images, with_batchnorm):
    calibration, test = images.calibration(16), images.test
    swept = quantization.sweep(with_batchnorm, ["INT_8", "POT_4", "FLOAT_8_E4"], calibration, *test, per_layer=True)
    assert len(swept) > 3
    settings = [
        {"granularity": "channel", "bias": "seed"},
        {"ranges": "minmax", "nonnegative": "signed"},
        *({"ranges": ranges, "nonnegative": "zero_point"} for ranges in ("minmax", "percentile", "mse")),
    ]
    for options in settings:
        small = quantization.ptq(with_batchnorm, "INT_4", calibration, **options)
        measures.accuracy(small, *test)
        quantization.compare(with_batchnorm, small, spec=images.spec)
    with pytest.warns(UserWarning, match="bias correction: no BatchNorm tells"):
        quantization.score_repairs(with_batchnorm, "INT_4", calibration, *test)
    measures.accuracy(quantization.lower(quantization.ptq(with_batchnorm, "INT_8", calibration)), *test)
    found = quantization.gradient_sensitivity(with_batchnorm, ["INT_2", "INT_8"], calibration)
    assert found.notna().all().all()


def test_robustness(images, network):
    few = images.test
    pgd = attacks.named("pgd", ball=BALL, **attacks.pace(BALL, 2))
    robustness.battery(network, *few, ball=BALL, steps=2, restarts=1)
    robustness.against_epsilon(network, *few, [0, 4])
    robustness.geometries(network, *few, [4], steps=1)
    robustness.transfer({"one": network, "two": network}, *few, attack=pgd)
    robustness.quantized(network, ["INT_8"], images.calibration(16), *few, attack=pgd)
    x, y = next(data.batches(*few, 8))
    robustness.loss_surface(network, x, y, ball=BALL, points=3)
    robustness.decision_slice(network, x[:1], y[:1], ball=BALL, points=3)
    robustness.convolution_outputs({"one": network}, x[0])
    robustness.norms_of_layers({"one": network}, images.spec.shape)


@pytest.mark.parametrize("random", [False, True], ids=["fixed", "random"])
def test_diagnostics(network, batch, random):
    network = defenses.add_noise(network, 0.05) if random else network
    table = robustness.diagnose(network, *batch, ball=BALL, steps=2, full=not random, eot_samples=1 + random)
    assert len(table) == len(robustness.CHECKS)


def test_certificates(images, network, batch):
    for bound in (certification.ibp, certification.crown_ibp, certification.crown):
        assert bound(network, *batch, epsilon=1 / 255).device.type == pretend_gpu.NAME
    certification.ladder(network, *images.test, [1 / 255])
    smoothed = certification.smooth(network, sigma=0.25)
    assert smoothed is not None
    defenses.lipschitz(network, images.spec.shape)
    defenses.certified_radius(network, *batch)


def test_generator(images, with_batchnorm):
    made = generator.build(with_batchnorm, images.spec, channels=16)
    generator.fit(made, with_batchnorm, epochs=1, steps=2, batch_size=8, superposed_fraction=0.5)
    pgd = attacks.named("pgd", ball=BALL, **attacks.pace(BALL, 1))
    generator.adjust_all(made, with_batchnorm, images.validation, attack=pgd, rounds=1, images=8, batch_size=8)
    sets = {"trained": generator.sample(made, 8), "boundary": generator.boundary(made, with_batchnorm, 8)}
    generator.assess(with_batchnorm, sets, images.spec, images.test)
    generator.losses(with_batchnorm, ["INT_8"], images.calibration(8), sets, images.test)


@pytest.fixture
def plan(tmp_path):
    epochs = {"prune": 1, "finetune": 2, "pretrain": 1}
    settings = {"model": "CNN_small", "width": 0.5, "era": {"steps": 1, "restarts": 1}, "folder": tmp_path}
    return plans.small("adversarial", epochs, train=32, test=8, **settings)


def test_pruning(plan, network, tmp_path):
    networks = pruning.methods(network, ["lwm", "admm", "hydra", "scratch"], [0.5], plan)
    networks = {("dense", 1.0): network, **networks}
    scored = pruning.score(networks, plan)
    pruning.eight_bits(networks, scored, plan)
    pruning.on_disk(networks, plan, tmp_path / "packed")
    pruning.certified(networks, plan, [1.0], images=2)


def test_joint_compression(plan, network):
    pruning.joint(network, ["DA", "Al0", "ALR", "ATMC-8", "masked_qat"], [0.3], plan)


def test_hidden_networks_and_ablation(plan, network):
    pruning.hidden(["natural"], plan, pruning.Smoothing(0.25, images=2, draws=(4, 8)))
    pruning.ablate(network, 0.5, plan, images=[16])


SMALLER = {
    "01_train": {"model": "SmallCNN", "train_images": 64},
    "02_quantize": {"calibration_images": 16, "test_images": 20, "sensitivity_images": 16, "deployed_images": 0},
    "04_generator": {"pseudo_images": 24, "robust_images": 8, "formats": ["INT_4"], "known": ""},
    "05_robust": {"test_images": 10, "check_images": 6, "quantized_images": 6, "certified_images": 2},
}
"""Not 03_fit, which computes with tables only, and not 06_prune: removing channels assigns to ``tensor.data``."""


@pytest.mark.filterwarnings("ignore:.*no better than guessing", "ignore:bias correction")  # it is not trained
@pytest.mark.parametrize("notebook", SMALLER)
def test_the_cells_of_a_notebook(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("RQLIB_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setattr(runtime, "choose_device", lambda name: torch.device(pretend_gpu.NAME, 0))
    monkeypatch.setattr(runtime, "has_fast_bfloat16", lambda device: False)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda *_: None)  # there is nothing to wait for
    cells = json.loads((small.ROOT / f"notebooks/{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    first, *others = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    names = {"display": print}
    exec(first, names)
    names.update(small.alone(notebook, tmp_path) | SMALLER[notebook])
    for source in others:
        exec(source, names)
    assert names["run"].policy.device.type == pretend_gpu.NAME
    assert names["run"].frame().shape[0] >= 1
