"""Open the network that a notebook works on, and the others it is compared with: the one way in for all notebooks."""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas
from torch import nn

from rqlib import defenses, models  # noqa: F401 - so that checkpoints of defended networks can be opened
from rqlib.core import files, presets, runtime, vocabulary
from rqlib.core.vocabulary import ImageSpec
from rqlib.data import ImageDataset
from rqlib.models import checkpoints, conventions
from rqlib.models.weights import load_weights
from rqlib.workbook import chance, parameters, results
from rqlib.workbook.chance import Score
from rqlib.workbook.choices import KINDS, NAMED


@dataclass(frozen=True)
class About:
    """What is known of an opened network. As text: ``ResNet_18 on digits: float accuracy 0.972 on 144 ...``.

    Attributes:
        model: name, as `models.build` takes it.
        width: multiplier of the channel counts.
        parameters: of the run of `01_train` that trained it; empty for a network from elsewhere.
        images: title of the images that the notebook gives it; empty if there are none.
        path: its checkpoint of `01_train`; None for a network from elsewhere.
        spec: of its images, with its own normalization. ``models.build(about.model, about.spec, width=about.width,
            options=about.options)`` makes another network of this kind, with random weights.
        options: of its constructor.
        changes: how it was changed after it was made (`models.checkpoints.CHANGES`), such as its defenses.
        pixels: the convention of its normalization, as the parameter ``pixels`` says it.
        score: accuracy on validation images; None if it was not scored.
        unscored: why it was not scored.
    """

    model: str
    width: float
    parameters: dict
    images: str
    path: Path | None
    spec: ImageSpec
    options: dict
    changes: dict
    pixels: str
    score: Score | None = None
    unscored: str = ""

    @property
    def objective(self) -> str:
        """What it was trained for."""
        return self.parameters.get("objective", "natural")

    @property
    def title(self) -> str:
        """For figures: ``ResNet_18 on digits``, or ``ResNet_18, adversarial, on digits``."""
        return title_of(self.model, self.objective, self.images)

    @property
    def history(self) -> pandas.DataFrame | None:
        """Its training, one row per epoch, if a run of `01_train` left it beside the checkpoint."""
        log = self.path and self.path.with_name("history.parquet")
        return files.load_table(log) if log and log.is_file() else None

    def trained(self, *names: str) -> dict:
        """The named parameters of its training run, as columns of a row; None for one that the run does not have."""
        return {name: self.parameters.get(name) for name in names}

    def __str__(self) -> str:
        return f"{self.title}: {self.score or self.unscored}"


def network(
    source: str | Path,
    images: ImageDataset | ImageSpec,
    *,
    weights: str | Path = "",
    pixels: str = "",
    options: Sequence[str] = (),
    width: float | None = None,
    seed: int | None = None,
) -> tuple[nn.Module, About]:
    """A network in eval mode on the active device, and what is known of it; it takes pixels in [0, 1].

    It is scored on validation images. If it is no better than guessing, one `AtChanceWarning` says what other pixels
    would give. It is not scored if there are no images, or if its weights are random: a name of `MODELS` or of
    torchvision without ``weights``, or any name without them for which a ``seed`` is given.

    Args:
        source: path of a checkpoint of `01_train`; empty for that of the latest finished run on these images; or
            ``torchvision:NAME``, ``package.module:function`` (called with ``num_classes`` and the options; the module
            is installed, or lies in the working folder or beside the weights), or a name of `MODELS`.
        images: those it is for; or only their spec.
        weights: of a named network: file of a state dict (`models.weights.load_weights`) or checkpoint of `01_train`;
            empty for random weights. A checkpoint also says pixels and options, unless they are said here.
        pixels: what the network expects: ``normalized`` (mean and standard deviation of the images), ``0..1``,
            ``0..255``, ``-1..1``, ``imagenet``, or ``MEAN/STD``; empty: what a checkpoint says, ``imagenet`` for
            torchvision's, ``normalized`` for others.
        options: of the constructor of a named network, each ``NAME=VALUE`` with the value in YAML: ``width=0.25``.
        width: the same as the option ``width`` of a name of `MODELS`; others can only have 1.0.
        seed: of random weights; None: torch's random numbers go on.

    Raises:
        FileNotFoundError: there is no such file, or no finished run; the message says how to make one.
        ValueError: unknown name, convention or option; the file belongs to another network, or to other images; it is
            a checkpoint of ``package.module:function``, whose module is imported only if the network is named.
    """
    made = {"options": parameters.options(options), "seed": seed} | ({} if width is None else {"width": width})
    model, about = _opened(source, images, weights, pixels, made)
    made_here = about.model in models.MODELS or about.model.startswith("torchvision:") or seed is not None
    if not weights and made_here and not about.path:
        return model, dataclasses.replace(about, unscored="random weights, not scored")
    if isinstance(images, ImageSpec):
        return model, dataclasses.replace(about, unscored="there are no images to score it on")
    about = dataclasses.replace(about, score=chance.score(model, images.validation))
    chance.warn_at_chance(model, about.title, images, about.score)
    return model, about


def title_of(model: str, objective: str, images: str) -> str:
    """A network, what it was trained for and its images, as titles of figures say them: `About.title`."""
    plain = objective == "natural"
    name = model if plain else f"{model}, {objective}"
    return f"{name}{'' if plain else ','} on {images}" if images else name


def others(about: About, images: ImageDataset, named: list[str] | None = None) -> dict[str, nn.Module]:
    """Networks to compare an opened one with: title -> network.

    Args:
        named: paths of their checkpoints; by default those of the first four finished runs of `01_train` on
            these images, without the opened one.
    """
    paths = named or _trusted(_finished(images.name, without=about.path)[: presets.MOST_OTHERS], about.model, images)
    found = [_of_checkpoint(Path(path), images, "", about.model) for path in paths]
    return {f"{number}. {other.model}, {other.objective}": opened for number, (opened, other) in enumerate(found, 1)}


def _opened(source, images, weights="", pixels: str = "", made: Mapping | None = None) -> tuple[nn.Module, About]:
    """The network and what is known of it before it is scored; ``made`` are width, options and seed."""
    if str(source) in models.MODELS or NAMED.fullmatch(str(source)):
        model, about = _named(str(source), images, weights, pixels, **(made or {}))
    else:
        given = {"weights": str(weights), **(made or {})}
        given = [f"{name}={value!r}" for name, value in given.items() if value or value == 0]
        if given:
            raise ValueError(
                f"network={str(source)!r}: a checkpoint brings its own weights and options, got {', '.join(given)}"
            )
        model, about = _of_checkpoint(_path(source, images), images, pixels)
    return runtime.active().place(model.eval()), about


def _path(source: str | Path, images: ImageDataset | ImageSpec) -> Path:
    """Where the checkpoint lies; an error that names the nearest name of a network if this looks like one."""
    if source:
        if not Path(source).exists() and str(source).isidentifier():
            raise ValueError(f"{vocabulary.did_you_mean('network', str(source), models.MODELS)}; {KINDS}")
        return Path(source)
    if isinstance(images, ImageSpec):
        raise ValueError(
            f"expected the name of a network, got an empty one and no images that a run belongs to; {KINDS}"
        )
    return results.find("01_train", dataset=images.name) / "checkpoint.pt"


def _of_checkpoint(path: Path, images, pixels: str, named: str = "") -> tuple[nn.Module, About]:
    """The network of a checkpoint; the module of the user's that makes the network ``named`` may be imported."""
    known = named if named and (checkpoints.record(path) or {}).get("model") == named else None
    model, found = models.load(path, expected=known)
    check_images(path, found, images)
    own, spec = found["spec"], _spec(images, found)
    if pixels:
        own = conventions.with_pixels(spec, pixels)
        conventions.change(model, own)
    return model, _about(model, found, own, spec, images, path)


def _named(name, images, weights, pixels, options=(), seed=None, width=None) -> tuple[nn.Module, About]:
    """A network by name; a checkpoint of its weights says what is not said otherwise."""
    found = (checkpoints.record(weights) if weights else None) or {}
    if found:
        if found["model"] != name:
            raise ValueError(
                f"weights={str(weights)!r}: expected weights of {name}, got a checkpoint of {found['model']}"
            )
        check_images(weights, found, images)
    spec = _spec(images, found)
    own = conventions.with_pixels(spec, pixels or conventions.usual(name))
    options = found.get("options", {}) | dict(options)
    made_width, width = width, found.get("width", 1.0) if width is None else width
    if name in models.MODELS:
        if made_width is not None and options.get("width", made_width) != made_width:
            raise ValueError(f"expected one width, got width={made_width} and options width={options['width']}")
        width = options.pop("width", width)
    changes = found.get("changes", {})
    made = {"width": width, "seed": seed, "options": options, "folder": Path(weights).parent if weights else None}
    model = models.build(name, own, weights=None if changes else weights or None, **made)
    if changes:
        model = checkpoints.changed(model, changes)
        load_weights(model, weights)
    if pixels:
        conventions.change(model, own)
    about = {"model": name, "parameters": {}} | found | {"width": width, "options": options}
    return model, _about(model, about, own, spec, images, Path(weights) if found else None)


def _about(model, found: Mapping, own: ImageSpec, spec: ImageSpec, images, path: Path | None) -> About:
    own = conventions.of(model, own)
    return About(
        model=found["model"],
        width=found["width"],
        parameters=found["parameters"],
        images="" if isinstance(images, ImageSpec) else images.title,
        path=path,
        spec=own,
        options=found["options"],
        changes=found.get("changes", {}),
        pixels=conventions.in_words(own, spec),
    )


def check_images(path: str | Path, found: Mapping, images: ImageDataset | ImageSpec) -> None:
    """Raise a ValueError if the network of a checkpoint was trained on images of another shape, or of other classes.

    Args:
        found: what the checkpoint says (`models.checkpoints.record`); classes that it does not name are not compared.
    """
    if isinstance(images, ImageSpec):
        return
    own, spec = found["spec"], images.spec
    if (own.shape, own.num_classes) != (spec.shape, spec.num_classes):
        raise ValueError(
            f"{path}: expected images {own.shape} in {own.num_classes} classes, as its network was trained on, "
            f"got {spec.shape} in {spec.num_classes}; choose another dataset or another network"
        )
    differing = [pair for pair in zip(found["classes"], images.classes, strict=False) if pair[0] != pair[1]]
    if differing:
        shown = ", ".join(f"{other!r} for {one!r}" for one, other in differing[:3])
        raise ValueError(
            f"{path}: expected images of the classes that its network was trained on, in the same order, got {shown}"
            f"{', ...' if len(differing) > 3 else ''}; choose another dataset or another network, or name the folders "
            "of the same classes alike"
        )


def _spec(images: ImageDataset | ImageSpec, found: Mapping) -> ImageSpec:
    """The spec of the images; without images, the one that a checkpoint names."""
    return found.get("spec", images) if isinstance(images, ImageSpec) else images.spec


def _trusted(paths: list[Path], named: str, images: ImageDataset) -> list[Path]:
    """The checkpoints that open without importing a module that nobody has named; a warning says the others."""
    names = {path: name for path in paths if (name := _model_for(path, images))}
    left_out = {
        path: name
        for path, name in names.items()
        if ":" in name and not name.startswith("torchvision:") and name != named
    }
    for path, name in left_out.items():
        warnings.warn(f"not compared with {path}: to load {name!r} the module would be imported", stacklevel=3)
    return [path for path in names if path not in left_out]


def _model_for(path: Path, images: ImageDataset) -> str | None:
    """The name of the network in a checkpoint; None, and a warning, for a damaged one or one for other images."""
    try:
        found = checkpoints.record(path)
        check_images(path, found, images)
    except ValueError as error:
        warnings.warn(f"a network is not compared with: {error}", stacklevel=4)
        return None
    return found["model"]


def _finished(dataset: str, without: Path | None) -> list[Path]:
    runs = [run for run in results.finished("01_train") if run["parameters"]["dataset"] == dataset]
    paths = [run["folder"] / "checkpoint.pt" for run in runs]
    return [path for path in paths if without is None or path.resolve() != without.resolve()]
