"""How far the rows of weights are from being orthogonal: penalties on the Gram matrix of each layer's weight.

A weight (C_out, C_in, K, K) is read as the matrix W (m, n) = (C_out, C_in K K). If m > n, W is transposed first: more
rows than dimensions cannot be orthogonal. G = W W' is the Gram matrix of the rows.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqlib.core.vocabulary import did_you_mean
from rqlib.defenses.folded import folded_weight, hidden_layers


def orthogonality(model: nn.Module, form: str = "cosine") -> Tensor:
    """The mean over the hidden layers of a penalty divided by m^2: a scalar that is differentiable in the weights.

    Each group of a grouped convolution has a matrix of its own, because it has inputs of its own; their mean counts.
    The last layer, which writes the logits, is not penalized. A BatchNorm that follows a layer undoes any scale of its
    rows, so W is the weight with that BatchNorm folded in; its statistics carry no gradient. Of normalizations that
    cannot be folded a warning tells, unless the form is ``cosine``, which does not see scales.

    Args:
        form: how a matrix is penalized, each a squared Frobenius norm:
            ``gram_columns``: ``|W' W - I|^2``. If m < n it cannot fall below n - m.
            ``gram_rows``: ``|W W' - I|^2``.
            ``off_diagonal``: ``|W W' o (1 - I)|^2`` (Brock et al. 2017, arXiv 1609.07093).
            ``cosine``: ``|C - I|^2`` with the cosines C between rows; it does not see their lengths.
            ``srip``: the squared spectral norm of ``W W' - I`` (Bansal et al. 2018, arXiv 1810.09102).
            ``seed_form_4``: a known mistake: the Gram matrix is divided by its Frobenius norm, so that even an
            orthogonal W is penalized.

    Raises:
        ValueError: unknown form; a network without hidden convolution or linear layers.
    """
    return Orthogonality(model, form)(model)


class Orthogonality:
    """The penalty of `orthogonality` for a network that is trained: which BatchNorm follows a layer is found once."""

    def __init__(self, model: nn.Module, form: str = "cosine"):
        if form not in FORMS:
            raise ValueError(did_you_mean("form of orthogonality", form, FORMS))
        self.form, self.layers = FORMS[form], hidden_layers(model)
        if form != "cosine":
            self.layers.warn_of_loose(form)

    def __call__(self, model: nn.Module) -> Tensor:
        return torch.stack([self._of_layer(*found) for found in self.layers.of(model)]).mean()

    def _of_layer(self, layer: nn.Module, norm: nn.Module | None) -> Tensor:
        stack = matrices(folded_weight(layer, norm), getattr(layer, "groups", 1))
        found = self.form(stack[0]) if len(stack) == 1 else torch.vmap(self.form)(stack).mean()
        return found / stack.shape[1] ** 2


def matrices(weight: Tensor, groups: int = 1) -> Tensor:
    """A layer's weight (C_out, ...) as a matrix (m, n) with m <= n for each of its groups: (groups, m, n)."""
    rows = weight.flatten(1).unflatten(0, (groups, -1))
    return rows if rows.shape[1] <= rows.shape[2] else rows.mT


def _from_identity(gram: Tensor) -> Tensor:
    return (gram - torch.eye(len(gram)).to(gram)).square().sum()


def gram_columns(w: Tensor) -> Tensor:
    """``|W' W - I|^2``, through ``|W W'|^2 - 2 |W|^2 + n``: the small Gram matrix is enough."""
    return (w @ w.T).square().sum() - 2 * w.square().sum() + w.shape[1]


def gram_rows(w: Tensor) -> Tensor:
    """``|W W' - I|^2``."""
    return _from_identity(w @ w.T)


def off_diagonal(w: Tensor) -> Tensor:
    """``|W W' o (1 - I)|^2``."""
    gram = w @ w.T
    return (gram - gram.diag().diag()).square().sum()


def cosine(w: Tensor) -> Tensor:
    """``|C - I|^2``, with the cosines C between the rows."""
    return gram_rows(F.normalize(w, dim=1, eps=1e-12))


def srip(w: Tensor) -> Tensor:
    """The squared spectral norm of ``W W' - I``, exactly."""
    return torch.linalg.matrix_norm(w @ w.T - torch.eye(len(w)).to(w), 2).square()


def seed_form_4(w: Tensor) -> Tensor:
    """A known mistake: ``|G / |G|_F - I|^2`` is not 0 at an orthogonal W."""
    gram = w @ w.T
    return _from_identity(gram / gram.norm())


FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    function.__name__: function for function in (gram_columns, gram_rows, off_diagonal, cosine, srip, seed_form_4)
}
"""Name -> penalty of a matrix (m, n) with m <= n, before it is divided by m^2."""
