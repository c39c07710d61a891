"""Random self-ensembles under attack: EOT fools more images, answers are votes, and every section runs through."""

from functools import partial

import pytest
import torch
from torch import nn

from rqlib import attacks, defenses, robustness
from rqlib.attacks.methods import in_words
from rqlib.core.projections import Linf
from rqlib.robustness import curves, random_networks, withstanding
from rqlib.robustness.random_networks import Averaged, Voting
from rqlib.robustness.withstanding import LOWEST
from tests import robust_networks
from tests.robust_networks import pictures

BALL = Linf(0.1)
PGD = partial(attacks.pgd, ball=BALL, step_size=0.03, steps=6)


@pytest.fixture(scope="module")
def ensemble():
    return defenses.add_noise(robust_networks.trained(adversarial=False), 0.15).eval()


class Members(nn.Module):
    """In the place of an attack: notes how many draws a forward pass of the attacked network averages over."""

    seen = ()

    def __call__(self, model, x, y):
        self.seen = (*self.seen, getattr(model, "members", None))
        return x


def test_the_judge_answers_by_the_majority_and_the_same_again(ensemble):
    x, _ = robust_networks.images(50)
    judge = random_networks.judge(ensemble)
    torch.manual_seed(0)
    votes = judge(x)
    assert (votes.sum(1) == 1).all()
    torch.rand(1)
    assert torch.equal(judge(x), votes), "the draws depend on the images alone"
    torch.manual_seed(1)
    many = defenses.majority(ensemble, x, draws=50)
    assert (votes.argmax(1) == many).float().mean() > 0.9
    plain = robust_networks.trained(adversarial=False)
    assert random_networks.judge(plain) is plain


def test_the_attack_sees_twenty_members_and_plain_networks_as_they_are(ensemble):
    x, y = robust_networks.images(4)
    for model, members, expected in (
        (Voting(ensemble), 20, 20),
        (ensemble, 1, 1),
        (Voting(ensemble), None, 5),
        (robust_networks.trained(adversarial=False), 20, None),
    ):
        noted = Members()
        Averaged(noted, members)(model, x, y)
        assert noted.seen == (expected,)
    assert (robustness.eot_samples(ensemble), robustness.eot_samples(nn.Linear(1, 1))) == (20, 1)


def test_attacks_are_told_apart_in_words():
    """A kept result belongs to its attack."""
    words = [in_words(one(BALL, 5)) for one in curves_of_noise()]
    assert len(set(words)) == 3
    assert words == [in_words(one(BALL, 5)) for one in curves_of_noise()]
    assert not any(" at 0x" in one for one in words)


def curves_of_noise():
    return random_networks.without_eot, random_networks.of_the_mean, random_networks.mean_of_losses


def test_the_battery_averages_gradients_and_shows_what_is_seen_without(ensemble, tmp_path):
    images, labels = pictures(80)
    found = robustness.battery(ensemble, images, labels, ball=BALL, steps=8, restarts=3, keep=tmp_path.joinpath)
    accuracy = found.table.set_index("attack").accuracy
    without, *eot = [name for name in accuracy.index if "EOT" in name]
    assert without == "PGD-8, without EOT"
    assert eot == ["FGSM, EOT-20", "PGD-8, EOT-20", "PGD-8, EOT-20, mean of the losses"]
    assert accuracy["none"] > 0.9
    assert accuracy[without] > accuracy["PGD-8, EOT-20"] + 0.05, "the difference is the lesson"
    assert accuracy[LOWEST] == accuracy.min() == accuracy.iloc[-1]
    assert found.first_fooled() == found.first_fooled(LOWEST)
    again = robustness.battery(ensemble, images, labels, ball=BALL, steps=8, restarts=3, keep=tmp_path.joinpath)
    assert again.table.equals(found.table)


def test_a_long_pgd_on_noise_is_bounded():
    names = withstanding.eot_attackers(BALL, 1000)
    assert "PGD-10, EOT-20" in names


def test_curves_and_geometries_run_through(ensemble):
    images, labels = pictures(20)
    curve = robustness.against_epsilon(ensemble, images, labels, [0.0, 25.0])
    table = curve.pivot(index="attack", columns="epsilon_255", values="accuracy")
    assert list(dict.fromkeys(curve.attack)) == ["noise", "PGD-10, without EOT", "PGD-10, EOT-20"]
    assert table[0.0].nunique() == 1
    assert table[25.0]["PGD-10, EOT-20"] < table[25.0]["noise"]
    assert list(curves.eot_makers(3))[-1] == "PGD-3, EOT-20"
    assert robustness.geometries(ensemble, images, labels, [8]).accuracy.between(0, 1).all()


def test_transfer_and_quantized_attack_the_ensemble_not_its_votes(ensemble):
    """The votes have no gradient; an attack on them would change nothing."""
    images, labels = pictures(40)
    networks = {"RSE": ensemble, "plain": robust_networks.trained(adversarial=False)}
    matrix = robustness.transfer(networks, images, labels, attack=PGD)
    assert matrix.loc["RSE", "RSE"] < 0.8
    assert matrix.loc["plain", "plain"] < 0.8
    with pytest.warns(UserWarning, match="weights alone are quantized"):
        table = robustness.quantized(ensemble, ["INT_8"], images, images, labels, attack=PGD)
    assert table.masked[0] < 0.8 < table.clean[0]


def test_the_checks_average_gradients_and_pass_once_they_are_told_to(ensemble):
    x, y = robust_networks.images(20)
    forced = robustness.diagnose(ensemble, x, y, ball=BALL, steps=2).set_index("number")
    assert forced.status[12] == "FAIL"
    assert "forced to 20 samples" in forced.value[12]
    told = robustness.diagnose(ensemble, x, y, ball=BALL, steps=2, eot_samples=robustness.eot_samples(ensemble))
    assert told.set_index("number").status[12] == "PASS"
