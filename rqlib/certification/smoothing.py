"""Randomized smoothing: a certificate in the L2 ball for any network, from what it answers under Gaussian noise.

The smoothed network answers the class that the network gives most often on ``x + N(0, sigma^2)``. If that class has
at least the probability p > 1/2, the answer is the same for every image within ``sigma Phi^-1(p)`` of x, in the L2
norm of pixels. p is bounded from below by counting. Source: Cohen et al. 2019, arXiv 1902.02918.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import scipy
import torch
from pandas import DataFrame
from torch import Tensor, nn

from rqlib import data
from rqlib.core import runtime
from rqlib.core.entry import classifier
from rqlib.core.resumable import Resumable, fingerprint

ABSTAINED = -1
"""Stands for the answer of the smoothed network where the counts do not tell it."""

STAGES = (100, 1_000, 10_000)
"""Draws after which `Smoothed.certify` looks whether an image is decided."""

_GUESSES = 100  # draws that choose the class
_GROUP = 40  # images that are worked on, and kept, together
_NOISY_IMAGES = {"cpu": 512, "cuda": 4096}  # in one forward pass; a CPU is faster while they fit its caches


def probability(hits: int, draws: int, *, alpha: float) -> float:
    """Clopper and Pearson's lower bound of a probability, which is wrong with a probability of at most ``alpha``."""
    return float(scipy.stats.binomtest(hits, draws, alternative="greater").proportion_ci(1 - alpha, method="exact").low)


def l2_radius(probability: float, sigma: float) -> float:
    """``sigma Phi^-1(probability)`` in pixels; 0 if the probability is at most 1/2."""
    return max(0.0, sigma * float(scipy.stats.norm.ppf(probability)))


ALPHA = 0.001


def smooth(model: nn.Module, *, sigma: float, alpha: float = ALPHA, seed: int = 0) -> "Smoothed":
    """The smoothed network, which certifies and predicts.

    Args:
        model: pixels to logits; any network, a randomized one (`defenses.add_noise`), too: then its own draws are part
            of what is averaged over.
        sigma: standard deviation of the noise, in pixels of [0, 1]. Noisy images are not clipped.
        alpha: probability with which a certificate, or an answer, may be wrong, for each image.
        seed: of the noise.

    Raises:
        ValueError: sigma is not above 0; alpha is not between 0 and 1.
    """
    if not (sigma > 0 and math.isfinite(sigma)):
        raise ValueError(f"expected sigma > 0, in pixels of [0, 1], got {sigma}; without noise nothing is smoothed")
    if not 0 < alpha < 1:
        raise ValueError(f"expected alpha between 0 and 1, got {alpha}")
    return Smoothed(classifier(model), sigma, alpha, seed)


def check_draws(stages: Sequence[int], radius: float | None, sigma: float, alpha: float) -> None:
    """Raise a ValueError unless the numbers of draws increase and can certify the radius."""
    stages = list(stages)
    if not stages or stages[0] < 1 or sorted(set(stages)) != stages:
        raise ValueError(f"expected increasing numbers of draws, such as {STAGES}, got {tuple(stages)}")
    alpha = alpha / len(stages)
    best = l2_radius(alpha ** (1 / stages[-1]), sigma)
    if radius is not None and not 0 <= radius <= best:
        needed = math.ceil(math.log(alpha) / math.log(scipy.stats.norm.cdf(radius / sigma))) if radius > 0 else 1
        raise ValueError(
            f"{stages[-1]:,} draws at sigma {sigma:g} can certify an L2 radius of at most {best:.4f}, and "
            f"{radius:g} is asked for: take at least {needed:,} draws, or a larger sigma"
        )


@dataclass(frozen=True)
class Smoothed:
    """A smoothed network; `smooth` makes it and explains the attributes."""

    model: nn.Module
    sigma: float
    alpha: float
    seed: int

    def certify(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        radius: float | None = None,
        draws: Sequence[int] = STAGES,
        checkpoint: str | Path | None = None,
    ) -> DataFrame:
        """What the smoothed network answers for each image, and in which L2 ball the answer is the same for certain.

        A hundred draws choose the class, and others, drawn anew, bound its probability. After each number of ``draws``
        those images are done for which ``radius`` is certified or is out of reach. The confidence is spent in equal
        parts over these stages (union bound), so stopping early costs nothing of it.

        Args:
            images, labels: uint8 (N, C, H, W), or pixels in [0, 1]; int64 (N,).
            radius: that is asked for, in pixels (L2); None takes all draws, for the largest radius.
            draws: increasing numbers of draws in all; one number is Cohen's algorithm.
            checkpoint: file in which the rows are kept, and from which an interrupted computation goes on.

        Returns:
            One row per image: label, predicted (-1: abstained), hits, draws, probability (lower bound), radius_l2,
            certified (predicted as labeled, in the ball that was asked for), seconds, precision.

        Raises:
            ValueError: so few draws cannot certify the radius, said before any is drawn; draws do not increase; the
                checkpoint belongs to another computation.
        """
        stages = [int(count) for count in ([draws] if isinstance(draws, int) else draws)]
        check_draws(stages, radius, self.sigma, self.alpha)
        settings = {"draws": stages, "radius": radius, "purpose": "certify"}
        rows = self._rows(images, labels, settings, checkpoint, lambda x, rng: self._certified(x, stages, radius, rng))
        table = DataFrame(rows)
        table["certified"] = (table.predicted == table.label) & (table.radius_l2 >= (radius or 0.0))
        return table[[name for name in table if name not in ("seconds", "precision")] + ["seconds", "precision"]]

    def predict(
        self, images: Tensor, labels: Tensor, *, draws: int = 1_000, checkpoint: str | Path | None = None
    ) -> DataFrame:
        """What the smoothed network answers for each image, from draws of its own.

        It abstains if the two classes that came most often do not differ significantly (binomial test).

        Returns:
            One row per image: label, predicted (-1: abstained), p_value, draws, seconds, precision.
        """
        settings = {"draws": draws, "purpose": "predict"}
        return DataFrame(
            self._rows(images, labels, settings, checkpoint, lambda x, rng: self._predicted(x, draws, rng))
        )

    def _rows(self, images, labels, settings: dict, checkpoint, compute) -> list[dict]:
        """The rows of all images, kept after every group of them."""
        if len(images) != len(labels) or not len(labels):
            raise ValueError(f"expected one label per image, got {len(images)} images and {len(labels)} labels")
        policy = runtime.active()
        where = {name: policy.record()[name] for name in ("device", "precision")}
        identity = {"sigma": self.sigma, "alpha": self.alpha, "seed": self.seed, **where, **settings}
        if checkpoint is not None:
            identity |= {"network": fingerprint(self.model.state_dict()), "images": fingerprint(images, labels)}
        kept = Resumable(checkpoint, identity, kind="smoothing")
        rows = kept.load().get("rows", [])
        policy.place(self.model)
        for start in runtime.progress(range(len(rows), len(labels), _GROUP), "smoothing"):
            group = slice(start, start + _GROUP)
            began = time.perf_counter()
            x = policy.place(data.to_pixels(images[group]))
            # Draws to certify and to predict, and those of each group, are independent of each other.
            rng = runtime.rng(self.seed, start, settings["purpose"] == "predict")
            found = compute(x, rng)
            share = (time.perf_counter() - began) / len(found)
            for row, label in zip(found, labels[group].tolist(), strict=True):
                rows.append({"label": label, **row, "seconds": share, "precision": where["precision"]})
            kept.save(rows=rows)
        return rows

    def _certified(self, x: Tensor, stages: list[int], radius: float | None, rng: torch.Generator) -> list[dict]:
        """The rows of one group: the images that are not decided yet go on to the next stage."""
        classes = self._counts(x, _GUESSES, rng).argmax(1)
        hits, rows, going = torch.zeros_like(classes), [{} for _ in x], torch.arange(len(x))
        done, alpha = 0, self.alpha / len(stages)
        for total in stages:
            counts = self._counts(x[going.to(x.device)], total - done, rng)
            hits[going] += counts.gather(1, classes[going, None]).squeeze(1)
            done, undecided = total, []
            for image in going.tolist():
                rows[image] = self._row(int(classes[image]), int(hits[image]), total, alpha)
                if radius is None or not self._decided(rows[image], radius, alpha):
                    undecided.append(image)
            going = torch.tensor(undecided, dtype=torch.int64)
            if not undecided:
                break
        return rows

    def _row(self, guess: int, hits: int, draws: int, alpha: float) -> dict:
        lower = probability(hits, draws, alpha=alpha)
        reach = l2_radius(lower, self.sigma)
        predicted = guess if reach > 0 else ABSTAINED
        return {"predicted": predicted, "hits": hits, "draws": draws, "probability": lower, "radius_l2": reach}

    def _decided(self, row: dict, radius: float, alpha: float) -> bool:
        """Whether the radius is certified, or more draws would not certify it for all we know."""
        if row["predicted"] != ABSTAINED and row["radius_l2"] >= radius:
            return True
        misses = row["draws"] - row["hits"]
        return 1 - probability(misses, row["draws"], alpha=alpha) < scipy.stats.norm.cdf(radius / self.sigma)

    def _predicted(self, x: Tensor, draws: int, rng: torch.Generator) -> list[dict]:
        first, second = self._counts(x, draws, rng).topk(2, dim=1)
        rows = []
        for (one, two), (guess, _) in zip(first.tolist(), second.tolist(), strict=True):
            p_value = float(scipy.stats.binomtest(one, one + two, 0.5).pvalue)
            answer = guess if p_value <= self.alpha else ABSTAINED
            rows.append({"predicted": answer, "p_value": p_value, "draws": draws})
        return rows

    @torch.no_grad()
    def _counts(self, x: Tensor, draws: int, rng: torch.Generator) -> Tensor:
        """How often each class (K) is answered for each image (B) in so many draws: int64 (B, K), on the CPU."""
        counts = None
        with runtime.evaluating(self.model), torch.random.fork_rng([x.device] if x.is_cuda else []):
            torch.manual_seed(int(torch.randint(2**62, (), generator=rng)))  # of a network that draws itself, too
            for owners, noisy in self._noisy(x, draws):
                with runtime.active().autocast():
                    logits = self.model(noisy)
                flat = owners * logits.shape[1] + logits.argmax(1)
                found = torch.bincount(flat, minlength=len(x) * logits.shape[1])
                counts = found if counts is None else counts + found
        return counts.view(len(x), -1).cpu()

    def _noisy(self, x: Tensor, draws: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(numbers of the images, noisy images), draws of many images together; one buffer is used again and again."""
        owners = torch.arange(len(x), device=x.device).repeat_interleave(draws)
        size = min(len(owners), _NOISY_IMAGES.get(x.device.type, 4096))
        buffer = x.new_empty(size, *x.shape[2:], x.shape[1])  # the memory of an image in channels_last
        for part in owners.split(size):
            noise = buffer[: len(part)].normal_(0, self.sigma)
            yield part, noise.permute(0, 3, 1, 2).add_(x[part])
