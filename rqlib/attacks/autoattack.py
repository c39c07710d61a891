"""Second opinions: Square attack and AutoAttack, from the optional package ``pyautoattack``."""

import importlib.util

import torch
from torch import Tensor, nn

from rqlib.attacks import ascent
from rqlib.core.projections import Ball


def is_installed() -> bool:
    """Whether ``pyautoattack`` can be imported."""
    return importlib.util.find_spec("pyautoattack") is not None


def square(
    model: nn.Module, x: Tensor, y: Tensor, *, ball: Ball, queries: int = 5000, rng: torch.Generator | None = None
) -> Tensor:
    """Square attack: random search that never looks at a gradient (Andriushchenko et al. 2020, arXiv 1912.00049).

    ``queries`` is the most forward passes for an image. Other arguments, result and errors as `attacks.pgd`.

    Raises:
        ModuleNotFoundError: pyautoattack is not installed.
    """
    _require()
    from pyautoattack.square import SquareAttack

    ascent.check_images(x, y)
    ascent.check_at_least(1, queries=queries)
    if not len(x):
        return x.detach().clone()
    with ascent.traceless(model, x, rng), torch.no_grad():
        search = SquareAttack(
            model, norm=type(ball).__name__, eps=ball.epsilon, n_queries=queries, seed=_seed(), device=x.device
        )
        return search.perturb(x.detach(), y)


def standard(model: nn.Module, x: Tensor, y: Tensor, *, ball: Ball, rng: torch.Generator | None = None) -> Tensor:
    """AutoAttack: APGD on CE and on DLR, FAB, and Square, one after another (Croce and Hein 2020, arXiv 2003.01690).

    Arguments, result and errors as `square`.
    """
    _require()
    from pyautoattack import AutoAttack

    ascent.check_images(x, y)
    if not len(x):
        return x.detach().clone()
    with ascent.traceless(model, x, rng):
        ensemble = AutoAttack(model, norm=type(ball).__name__, eps=ball.epsilon, seed=_seed(), device=x.device)
        ensemble.verbose = False
        found, _ = ensemble.run_standard_evaluation(x.detach(), y, batch_size=len(x))
        return found


def _seed() -> int:
    """A seed from the attack's own random numbers."""
    return int(torch.randint(2**31, ()))


def _require() -> None:
    if not is_installed():
        raise ModuleNotFoundError("this attack needs the optional package pyautoattack: pip install pyautoattack")
