"""PGD-10 until the robust accuracy is known, against torchattacks, foolbox and ART; EOT; one image.

Two ResNet_18 on the digits, whose images are dimmed until 8/255 is much: an undefended one at a tenth of
the contrast, which falls within two or three steps as networks on natural images do, and one trained
adversarially, at the contrast where about half of the images withstand. Both are trained once and kept in ``outputs``.
"""

import copy
import dataclasses
import functools
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import row
from rqlib import attacks, data
from rqlib.core import files, runtime
from rqlib.core.projections import Linf
from rqlib.measures import evaluate
from rqlib.models import blocks, catalog

COUNT, BATCH, STEPS, RADIUS, STEP_SIZE = 256, 64, 10, 8 / 255, 2 / 255
PGD = functools.partial(  # from the image itself, each step to the corner that the gradient points to: most fall soon
    attacks.pgd,
    ball=Linf(RADIUS),
    step_size=2 * RADIUS,
    steps=STEPS,
    random_start=False,
    active_set=True,
)
FOLDER = files.project_root() / "outputs/bench_attacks"
CONTRASTS = (0.25, 0.2, 0.18, 0.16, 0.14, 0.12, 0.1)


def trained(dataset: data.ImageDataset, *, adversarial: bool) -> dict[str, Tensor]:
    """Weights of a ResNet_18 on the digits at full contrast; trained once."""
    path = FOLDER / f"{'adversarial' if adversarial else 'natural'}.pt"
    if not path.exists():
        model = catalog.build("ResNet_18", dataset.spec)
        train(model, dataset, radius=0.2 if adversarial else 0.0)
        files.save_tensors(path, model.state_dict())
    return files.load_tensors(path)


def train(model: nn.Module, dataset: data.ImageDataset, *, radius: float, epochs: int = 4) -> None:
    """A few epochs in one cycle, on the images or on their quickly attacked versions."""
    policy, steps = runtime.active(), epochs * -(-len(dataset.train.labels) // BATCH)
    optimizer = torch.optim.SGD(policy.place(model).parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    for epoch in runtime.progress(range(epochs), "training a network of the benchmark"):
        for x, y in data.batches(*dataset.train, BATCH, shuffle=True, rng=runtime.rng(epoch)):
            with policy.autocast():
                if radius:
                    x = attacks.pgd(model, x, y, ball=Linf(radius), step_size=radius, steps=1, best=False)
                loss = F.cross_entropy(model.train()(x).float(), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def dimmed(dataset: data.ImageDataset, weights: dict[str, Tensor], contrast: float) -> tuple[nn.Module, Tensor, Tensor]:
    """A network and test images uint8 whose distance from gray is multiplied by ``contrast``."""
    around_gray = lambda pixels: tuple(0.5 + contrast * (pixel - 0.5) for pixel in pixels)  # noqa: E731
    std = tuple(contrast * deviation for deviation in dataset.spec.std)
    model = catalog.build("ResNet_18", dataset.spec)
    model.load_state_dict(weights)
    model.normalize = blocks.Normalize(dataclasses.replace(dataset.spec, mean=around_gray(dataset.spec.mean), std=std))
    images, labels = dataset.test.images[:COUNT], dataset.test.labels[:COUNT]
    gray = 127.5 + contrast * (images.float() - 127.5)
    return model.eval(), gray.round().to(torch.uint8), labels


def half_robust(dataset: data.ImageDataset, weights: dict[str, Tensor]) -> tuple[nn.Module, Tensor, Tensor]:
    """The adversarially trained network at the contrast where robust accuracy first falls to about a half."""
    for contrast in CONTRASTS:
        case = dimmed(dataset, weights, contrast)
        if evaluate.accuracy(*case, attack=PGD, batch_size=BATCH) < 0.55:
            break
    return case


def peers(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[dict[str, Callable], Callable]:
    """Each library's PGD-10 as its manual says (batches of adversarial images), and what scores them in float32."""
    import foolbox
    import torchattacks
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    everything = [(x / 255, y) for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True)]
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    shape = tuple(images.shape[1:])
    estimator = PyTorchClassifier(model, nn.CrossEntropyLoss(), shape, 10, clip_values=(0, 1), device_type="cpu")

    def with_torchattacks(random_start: bool = True, batches=everything):
        attack = torchattacks.PGD(model, eps=RADIUS, alpha=STEP_SIZE, steps=STEPS, random_start=random_start)
        return [attack(x, y) for x, y in batches]

    def with_foolbox(random_start: bool = True, batches=everything):
        attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP_SIZE, steps=STEPS, random_start=random_start)
        return [attack(wrapped, x, y, epsilons=RADIUS)[1] for x, y in batches]

    def with_art(random_start: bool = True, batches=everything):
        settings = {"eps": RADIUS, "eps_step": STEP_SIZE, "max_iter": STEPS, "num_random_init": int(random_start)}
        attack = ProjectedGradientDescent(estimator, **settings, batch_size=BATCH, verbose=False)
        return [torch.tensor(attack.generate(x.numpy(), y.numpy())) for x, y in batches]

    def scored(found: list[Tensor]) -> float:
        with torch.no_grad():
            return (model(torch.cat(found)).argmax(1) == labels).double().mean().item()

    return {"torchattacks": with_torchattacks, "foolbox": with_foolbox, "ART": with_art}, scored


def agree(model: nn.Module, found: dict[str, Tensor], x: Tensor, y: Tensor) -> str:
    """How many adversarial images are ours to the last bit where nothing is drawn; raises below 90%.

    ART takes other steps on a few images whose gradient has nearly vanished.
    """
    ours = PGD(model, x, y, step_size=STEP_SIZE, best=False, active_set=False)
    equal = {name: (adversarial == ours).flatten(1).all(1) for name, adversarial in found.items()}
    same = {name: images.float().mean().item() for name, images in equal.items()}
    assert min(same.values()) > 0.9, f"the libraries disagree: {same}"
    return f"of {len(x)} the same to the last bit: " + ", ".join(f"{name} {share:.1%}" for name, share in same.items())


def compare(title: str, model: nn.Module, images: Tensor, labels: Tensor, *, at_least: float) -> dict:
    """One row: ours against the peer that is fastest on one batch, after all have been shown to agree."""
    (runs, scored), own = peers(model, images, labels), copy.deepcopy(model)
    seconds, found, first = {}, {}, (images[:BATCH] / 255, labels[:BATCH])
    for name, run in runs.items():
        started = time.perf_counter()
        found[name] = run(random_start=False, batches=[first])[0]
        seconds[name] = time.perf_counter() - started
    agreement, fastest = agree(model, found, *first), min(seconds, key=seconds.get)
    ours = functools.partial(evaluate.accuracy, own, images, labels, attack=PGD, batch_size=BATCH)
    robust, theirs = ours(), scored(runs[fastest]())
    assert robust <= theirs + 2 * (theirs * (1 - theirs) / COUNT) ** 0.5, f"robust accuracy {robust}, theirs {theirs}"
    others = ", ".join(f"{name} {taken:.1f} s" for name, taken in seconds.items())
    return row(
        f"PGD-{STEPS}, {COUNT} images, {title}: robust accuracy {robust:.3f}, theirs {theirs:.3f}",
        fastest,
        ours,
        lambda: scored(runs[fastest]()),
        at_least=at_least,
        agree=f"{agreement}; per batch: {others}",
    )


def eot(dataset: data.ImageDataset) -> dict:
    """One row: a gradient averaged over 20 tiled draws against 20 gradients."""
    model, (x, y) = catalog.build("SmallCNN", dataset.spec).eval(), next(data.batches(*dataset.test, BATCH))
    step = functools.partial(attacks.fgsm, model, x, y, ball=Linf(RADIUS))
    return row(
        f"EOT-20 gradient, SmallCNN, {BATCH} images",
        "20 gradients",
        lambda: step(eot_samples=20),
        lambda: [step() for _ in range(20)],
        at_least=1.0,
        agree="the network is deterministic: same images",
    )


def one_image(dataset: data.ImageDataset, weights: dict[str, Tensor]) -> dict:
    """One row: the live viewer's attack, PGD-20 on one image, against one second."""
    model, images, labels = dimmed(dataset, weights, 0.1)
    policy = runtime.active()
    model, x, y = policy.place(model), policy.place(images[:1] / 255), policy.place(labels[:1])

    def attack() -> None:
        with policy.autocast():
            attacks.pgd(model, x, y, ball=Linf(RADIUS), step_size=STEP_SIZE, steps=20)

    return row(
        "PGD-20 on one image, ResNet_18", "one second", attack, lambda: time.sleep(1), at_least=1.0, agree="a budget"
    )


def measure() -> list[dict]:
    """One row a comparison."""
    dataset = data.load("digits")
    natural, adversarial = (trained(dataset, adversarial=kind) for kind in (False, True))
    return [
        compare("ResNet_18 undefended", *dimmed(dataset, natural, 0.1), at_least=6.0),
        compare("ResNet_18 adversarially trained", *half_robust(dataset, adversarial), at_least=3.5),
        eot(dataset),
        one_image(dataset, natural),
    ]
