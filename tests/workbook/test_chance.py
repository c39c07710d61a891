"""A network that is no better than guessing is named, with the pixels that would help it."""

import dataclasses
import warnings

import pytest
import torch

from rqlib import data, models, workbook
from rqlib.core.vocabulary import ImageSpec
from rqlib.data import Split
from rqlib.models import conventions
from rqlib.workbook import chance
from rqlib.workbook.chance import AtChanceWarning, Score

NAMES = conventions.names(ImageSpec())


@pytest.fixture(scope="module")
def images():
    return data.load("digits")


def opened(images, expects: str, **options):
    options = {"options": [f"pixels={expects}"], **options}
    return workbook.network("tests.workbook.particular:network", images, **options)


@pytest.mark.parametrize("expects", NAMES)
def test_the_right_pixels_work_without_a_word(images, expects):
    _, about = opened(images, expects, pixels=expects)
    assert about.pixels == expects
    assert about.score.accuracy > 0.8
    assert about.score.above_chance
    assert str(about) == (
        f"tests.workbook.particular:network on digits: float accuracy {about.score.accuracy:.3f} on 144 validation "
        f"images (chance {about.score.chance:.3f})"
    )


@pytest.mark.parametrize("expects", NAMES)
def test_wrong_pixels_are_said_and_the_right_ones_named_first(images, expects):
    for wrong in NAMES:
        if wrong == expects:
            continue
        words = rf"pixels '{wrong}': .*: no better than guessing. On the same images {expects} gives 0\.[89]\d\d, .*"
        with pytest.warns(
            AtChanceWarning, match=words + f"if that is how it was trained, say pixels='{expects}'"
        ) as said:
            model, about = opened(images, expects, pixels=wrong)
        assert len(said) == 1
        assert said[0].filename == __file__
        assert about.pixels == wrong, "nothing is switched"
        assert chance.score(model, images.validation) == about.score


def test_the_default_is_what_the_source_says(images):
    assert opened(images, "normalized")[1].pixels == "normalized"
    assert workbook.network("torchvision:squeezenet1_1", images)[1].pixels == "imagenet"


def test_two_classes_at_chance(images):
    two = {
        name: Split(getattr(images, name)[0], getattr(images, name)[1] % 2) for name in ("train", "validation", "test")
    }
    halved = dataclasses.replace(
        images, **two, classes=("even", "odd"), spec=dataclasses.replace(images.spec, num_classes=2)
    )
    with pytest.warns(AtChanceWarning, match="none of them is above chance: are these its weights"):
        _, about = workbook.network("tests.workbook.test_chance:constant", halved)
    assert about.score.accuracy <= about.score.chance


def constant(num_classes: int) -> torch.nn.Module:
    """Always answers the first class."""
    layer = torch.nn.Linear(3072, num_classes)
    torch.nn.init.zeros_(layer.weight)
    layer.bias = torch.nn.Parameter(torch.arange(num_classes, 0, -1.0))
    return torch.nn.Sequential(torch.nn.Flatten(), layer)


@pytest.mark.parametrize(
    ("accuracy", "share", "images", "above"),
    [
        (0.10, 0.10, 500, False),
        (0.12, 0.10, 500, False),
        (0.14, 0.10, 500, True),  # 20 hits more than 50: three standard deviations
        (1.0, 0.5, 6, False),  # 2^-6 is 0.016
        (1.0, 0.5, 7, True),  # 2^-7 is 0.008
        (1.0, 1.0, 500, False),  # one class
    ],
)
def test_above_chance(accuracy, share, images, above):
    assert Score(accuracy, share, images).above_chance == above


def test_random_weights_asked_for_by_name_are_not_scored(images):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, about = workbook.network("SmallCNN", images)
    assert about.score is None
    assert str(about) == "SmallCNN on digits: random weights, not scored"
    _, about = workbook.network("tests.workbook.test_chance:constant", images.spec)
    assert str(about) == "tests.workbook.test_chance:constant: there are no images to score it on"


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        ("0..25", r"unknown pixels '0\.\.25' \(did you mean '0\.\.255'\?\); .*or MEAN/STD such as"),
        ("0.5,0.5/0.5", "expected one number, or one for each of 3 channels, got 2"),
        ("0.5/0", r"expected std > 0 in every channel"),
        ("0.5/x", "unknown pixels"),
        ("1/2/3", "unknown pixels"),
    ],
)
def test_pixels_that_are_none(images, pixels, words):
    with pytest.raises(ValueError, match=words):
        workbook.network("SmallCNN", images, pixels=pixels)


def test_numbers_instead_of_a_name(images):
    model, about = workbook.network("SmallCNN", images, pixels="0.49,0.48,0.45/0.25,0.24,0.26")
    assert about.pixels == "0.49,0.48,0.45/0.25,0.24,0.26"
    assert about.spec.std == (0.25, 0.24, 0.26)
    torch.testing.assert_close(model.normalize.mean.flatten(), torch.tensor([0.49, 0.48, 0.45]))
    assert workbook.network("SmallCNN", images, pixels="0.5/0.5")[1].pixels == "-1..1"


def test_one_channel():
    spec = ImageSpec(1, 28, 28, 10, (0.13,), (0.31,))
    assert conventions.names(spec) == ["normalized", "0..1", "0..255", "-1..1"]
    with pytest.raises(
        ValueError, match=r"got 3; images of one channel become color by data.load\(\.\.\., channels=3\)"
    ):
        conventions.with_pixels(spec, "imagenet")
    assert models.build("LeNet", conventions.with_pixels(spec, "0..255")).normalize.std.item() == pytest.approx(1 / 255)
