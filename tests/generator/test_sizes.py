from rqlib import generator
from tests import generated


def test_attacks_move_images_within_their_radius():
    made = generator.sample(generated.trained(), 20)
    x, attacks = made.images / 255, generator.SMALL.attacks(8 / 255)
    assert list(attacks) == ["fgsm", "pgd"]
    assert attacks["pgd"].keywords["steps"] == generator.SMALL.attack_steps
    for attack in attacks.values():
        moved = attack(generated.teacher(), x, made.labels) - x
        assert 0 < moved.abs().max() <= 8 / 255 + 1e-6
