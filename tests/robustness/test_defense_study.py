"""The study of defenses on tiny networks: its table, going on after a kill, and bad input."""

import math
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pandas
import pytest
import torch

from rqlib import attacks, defenses, measures, models, robustness
from rqlib.core.projections import Linf
from rqlib.robustness import Trained
from rqlib.robustness.random_networks import Voting
from tests import robust_networks
from tests.robust_networks import SPEC, pictures

NAN = math.nan
COLUMNS = ["variant", "seed", "trained_255", "epsilon_255", "clean_accuracy", "robust_accuracy", "success_rate"]


def small(seed: int = 0, noise: float = 0.0):
    """An untrained network."""
    network = models.build("CNN_small", SPEC, seed=seed).eval()
    return defenses.add_noise(network, noise).eval() if noise else network


def trained(seed: int = 0):
    return robust_networks.trained(adversarial=bool(seed))


def of_study(seeds: int = 2) -> list[Trained]:
    networks = [Trained("original", seed, NAN, partial(small, seed)) for seed in range(seeds)]
    networks += [Trained("adversarial", seed, 8.0, partial(small, seed)) for seed in range(seeds)]
    return networks + [Trained("RSE", seed, NAN, partial(small, seed, 0.1)) for seed in range(seeds)]


study = partial(robustness.study, images=pictures(20)[0], labels=pictures(20)[1], steps=2)


def test_one_row_per_network_and_radius():
    table = study(of_study(), epsilons_255=[4])
    assert list(table)[:7] == COLUMNS
    radii = table.groupby(["variant", "seed"]).epsilon_255.apply(list)
    assert radii["original", 0] == radii["RSE", 1] == [4.0, 8.0]
    assert radii["adversarial", 1] == [8.0], "at its own radius alone"
    assert table.clean_accuracy.between(0, 1).all()
    of_noise = table.variant == "RSE"
    assert table.margin_accuracy.isna().equals(of_noise)
    assert table.without_eot_accuracy.notna().equals(of_noise)
    lower = table[of_noise][["ce_accuracy", "mean_ce_accuracy"]].min(axis=1)
    assert table[of_noise].robust_accuracy.tolist() == lower.tolist()
    plain = table[~of_noise]
    assert (plain.robust_accuracy <= plain[["ce_accuracy", "margin_accuracy"]].min(axis=1)).all()
    assert (plain.ce_accuracy <= plain.clean_accuracy).all()


def test_accuracies_are_those_of_the_attacks():
    images, labels = pictures(60)
    networks = [Trained("original", 0, NAN, partial(trained, 0)), Trained("adversarial", 0, 25.0, partial(trained, 1))]
    table = robustness.study(networks, images, labels, steps=5).set_index("variant")
    assert table.epsilon_255.tolist() == [25.0, 25.0]
    ball = Linf(25 / 255)
    for name, network in (("original", trained(0)), ("adversarial", trained(1))):
        score = partial(measures.correct, network, images, labels)
        settings = {"ball": ball, **attacks.pace(ball, 5)}
        ce, margin = (score(attack=attacks.named("pgd", loss=loss, **settings)) for loss in ("ce", "margin"))
        assert table.ce_accuracy[name] == ce.double().mean().item()
        assert table.margin_accuracy[name] == margin.double().mean().item()
        assert table.robust_accuracy[name] == (ce & margin).double().mean().item()
        clean = score(attack=attacks.none)
        expected = (clean & ~(ce & margin)).sum() / clean.sum()
        assert table.success_rate[name] == pytest.approx(expected.item())
        report = attacks.named("pgd", ball=ball, step_size=2 / 255, steps=4, report_exact=True)
        assert table.report_accuracy[name] == score(attack=report).double().mean().item()
    assert table.robust_accuracy["adversarial"] > table.robust_accuracy["original"] + 0.2
    assert table.report_accuracy["original"] > table.robust_accuracy["original"] + 0.1, "a smaller change of pixels"


def test_noise_looks_more_robust_without_eot():
    images, labels = pictures(80)
    noisy = defenses.add_noise(trained(0), 0.15).eval()
    table = robustness.study([Trained("RSE", 0, NAN, lambda: noisy)], images, labels, epsilons_255=[25], steps=8)
    assert table.without_eot_accuracy[0] > table.robust_accuracy[0] + 0.05
    assert (
        table.clean_accuracy[0] == measures.correct(Voting(noisy), images, labels, batch_size=25).double().mean().item()
    )


def test_networks_are_open_one_at_a_time():
    alive = []

    def opened(seed):
        alive.append(f"open {seed}")
        network = small(seed)
        network.register_forward_hook(lambda *_: alive.append(f"used {seed}"))
        return network

    study([Trained("original", seed, NAN, partial(opened, seed)) for seed in range(3)], epsilons_255=[4])
    order = list(dict.fromkeys(alive))
    assert order == [f"{word} {seed}" for seed in range(3) for word in ("open", "used")]


def test_an_interrupted_study_goes_on_and_changed_networks_are_attacked_again(tmp_path, monkeypatch):
    path, networks, calls, correct = tmp_path / "study.pt", of_study(), [], measures.evaluate.correct

    def counted(*args, **options):
        calls.append(1)
        return correct(*args, **options)

    monkeypatch.setattr(measures.evaluate, "correct", counted)
    first = study(networks[:3], epsilons_255=[8], checkpoint=path)
    assert len(calls) == 3 * 4
    both = study(networks[:4], epsilons_255=[8], checkpoint=path)
    assert len(calls) == 4 * 4
    pandas.testing.assert_frame_equal(both[:3], first)
    pandas.testing.assert_frame_equal(both, study(networks[:4], epsilons_255=[8]))
    calls.clear()
    changed = [Trained("original", 0, NAN, partial(small, 7)), *networks[1:4]]
    study(changed, epsilons_255=[8], checkpoint=path)
    assert len(calls) == 4
    with pytest.raises(ValueError, match="belongs to another study: steps 2 instead of 3"):
        study(networks, epsilons_255=[8], checkpoint=path, steps=3)


KILLED = """
import sys
from functools import partial
from rqlib.core import runtime
from rqlib.robustness import Trained
from tests.robustness import test_defense_study as own
def opened(seed):
    print("open", seed, flush=True)
    return own.small(seed)
with runtime.using("cpu", "float32"):
    networks = [Trained("original", seed, own.NAN, partial(opened, seed)) for seed in range(400)]
    own.study(networks, epsilons_255=[4, 8], checkpoint=sys.argv[1])
"""


def test_a_killed_study_goes_on(tmp_path):
    path, root = tmp_path / "study.pt", Path(__file__).parents[2]
    command = [sys.executable, "-c", KILLED, path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=root, text=True) as killed:
        for line in killed.stdout:
            if line == "open 3\n":
                os.kill(killed.pid, signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL
    done = torch.load(path, weights_only=True)["done"]
    assert len(done) >= 3
    networks = [Trained("original", seed, NAN, partial(small, seed)) for seed in range(3)]
    rows = [row for one in list(done.values())[:3] for row in one]
    table = study(networks, epsilons_255=[4, 8], checkpoint=path)
    assert table[["epsilon_255", "ce_accuracy"]].to_dict("records") == [
        {name: row[name] for name in ("epsilon_255", "ce_accuracy")} for row in rows
    ]
    assert len(torch.load(path, weights_only=True)["done"]) == len(done)


def test_logs_stand_below_each_other_and_missing_ones_are_named():
    log = pandas.DataFrame({"epoch": [1, 2], "loss": [2.0, 1.0], "seed": [9, 9]})
    one = Trained("original", 3, NAN, small, lambda: log)
    with pytest.warns(UserWarning, match=re.escape("no training log of RSE, seed 0; RSE, seed 1")):
        found = robustness.histories([one, *of_study()[-2:]])
    assert list(found)[:5] == ["variant", "seed", "trained_255", "epoch", "loss"]
    assert found.seed.tolist() == [3, 3]
    assert found.loss.tolist() == [2.0, 1.0]
    assert robustness.histories([]).empty


def test_one_seed_of_every_variant_is_opened_for_comparison():
    networks = [Trained("leaky", 1, 8.0, small), *of_study()[::-1], Trained("Q+A", 1, 4.0, small)]
    chosen = robustness.one_seed(networks, 8.0)
    assert list(chosen) == ["original", "adversarial", "RSE", "leaky"]
    assert chosen["RSE"].members == 5
    with pytest.raises(ValueError, match="expected networks trained at 4/255 or without a radius, got none"):
        robustness.one_seed([Trained("leaky", 1, 8.0, small)], 4.0)


@pytest.mark.parametrize(
    ("networks", "words"),
    [
        ([], "expected trained networks of the variants original, adversarial, quantized"),
        ([*of_study(), *of_study()[:1]], "got several of original, seed 0"),
        (
            [Trained("A+R", 1, 8.0, small)] * 2,
            "expected one network per variant, seed and radius, got several of A+R, seed 1, trained at 8/255",
        ),
        (of_study()[:1], "expected a radius to attack at"),
    ],
)
def test_errors(networks, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        study(networks)
