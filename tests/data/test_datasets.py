"""Named sets, splits and batches; the files of each source are tested in its own file."""

import dataclasses
import runpy
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rqlib.core import runtime
from rqlib.data import datasets, imagefolder
from tests.shared import shared


@pytest.fixture(scope="module")
def digits() -> datasets.ImageDataset:
    with runtime.using("cpu", "float32"):
        return datasets.load("digits")


def splits(dataset: datasets.ImageDataset) -> tuple[datasets.Split, ...]:
    return dataset.train, dataset.validation, dataset.test


def numbered(count: int) -> torch.Tensor:
    """Images that say which they are: image i is i in every pixel."""
    return torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 3, 4, 4).contiguous()


def test_digits_are_the_1797_of_scikit_learn(digits):
    from sklearn.datasets import load_digits

    whole = load_digits()
    labels = torch.cat([split.labels for split in splits(digits)])
    images = torch.cat([split.images for split in splits(digits)])
    assert labels.dtype == torch.int64
    assert torch.equal(labels.bincount(), torch.from_numpy(whole.target).bincount())
    assert images.dtype == torch.uint8
    assert torch.equal(images[:, 0], images[:, 2])
    assert images.float().mean() / 255 == pytest.approx(whole.images.mean() / 16, abs=2e-3)
    assert len({image.contiguous().numpy().tobytes() for image in images}) == 1797, "every image is in one split"
    originals = torch.from_numpy(whole.images).float().flatten(1) / 16
    small = torch.nn.functional.avg_pool2d(images[:50, :1].float() / 255, 4).flatten(1)
    nearest = torch.cdist(small, originals).argmin(1)
    assert torch.equal(torch.from_numpy(whole.target)[nearest], labels[:50]), "means of 4x4 pixels give 8x8 digits back"
    assert repr(digits) == "digits: 1,293 train, 144 validation, 360 test images of 3x32x32 in 10 classes"
    assert digits.classes == tuple("0123456789")
    assert digits.test.labels.bincount().min() >= 34, "a fifth of every class"
    assert all(split.images.is_contiguous(memory_format=torch.channels_last) for split in splits(digits))


@given(st.integers(1, 30), st.integers(1, 3), st.integers(0, 2**31))
def test_mean_and_std_agree_with_torch(count, channels, seed):
    images = torch.randint(0, 256, (count, channels, 3, 5), dtype=torch.uint8, generator=runtime.rng(seed))
    std, mean = torch.std_mean(images.double() / 255, (0, 2, 3), correction=0)
    ours_mean, ours_std = datasets.mean_and_std(images)
    assert ours_mean == pytest.approx(mean.tolist(), abs=6e-5)
    assert ours_std == pytest.approx(std.tolist(), abs=6e-5)


def test_std_of_equal_pixels_is_one_gray_level():
    assert datasets.mean_and_std(torch.full((2, 1, 4, 4), 51, dtype=torch.uint8)) == ((0.2,), (round(1 / 255, 4),))


def test_spec_has_mean_and_std_of_the_training_images_and_channels_repeat_gray_ones(digits):
    gray = datasets.load("digits", channels=1)
    assert gray.spec.shape == (1, 32, 32)
    assert torch.equal(gray.test.images[:, 0], digits.test.images[:, 1])
    published = torch.cat([gray.train.images, gray.validation.images])
    assert (gray.spec.mean, gray.spec.std) == datasets.mean_and_std(published)
    assert (digits.spec.mean, digits.spec.std) == (gray.spec.mean * 3, gray.spec.std * 3)


@given(st.integers(2, 500))
def test_held_out_is_a_tenth_and_the_rest_is_the_rest(count):
    rest, held_out = datasets.hold_out(count)
    assert len(held_out) == max(1, round(count / 10))
    assert torch.equal(torch.cat([rest, held_out]).sort().values, torch.arange(count))
    assert torch.equal(held_out, held_out.sort().values)


def test_validation_indices_point_into_the_sets_own_training_images(digits):
    train, _, _ = datasets.sources.SOURCES["digits"].read(Path())
    images, labels = train
    assert torch.equal(images[digits.validation_indices, 0], digits.validation.images[:, 0])
    assert torch.equal(labels[digits.validation_indices], digits.validation.labels)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: datasets.load("cifar11"), r"unknown dataset 'cifar11' \(did you mean 'cifar10'\?\)"),
        (lambda: datasets.load("imagefolder"), r"did you mean 'imagefolder:PATH'\?"),
        (lambda: datasets.load("imagefolder:"), r"did you mean 'imagefolder:PATH'\?"),
        (lambda: datasets.load(""), "unknown dataset ''; known: digits, cifar10"),
        (lambda: datasets.hold_out(1), "at least 2 training images.* got 1"),
        (lambda: datasets.to_pixels(torch.tensor([3])), "expected images uint8, or floating point.*got torch.int64"),
        (lambda: datasets.batches(numbered(4), torch.arange(3), 2), "one label per image, got 4 images and 3 labels"),
        (lambda: datasets.batches(numbered(4), torch.arange(4), 0), "batch_size of at least 1, got 0"),
    ],
)
def test_faults_are_refused_at_the_call(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_root_is_the_argument_then_the_variable_then_the_projects_data(tmp_path, monkeypatch):
    monkeypatch.setenv("RQLIB_DATA", str(tmp_path / "variable"))
    assert datasets.data_root(tmp_path / "argument") == tmp_path / "argument"
    assert datasets.data_root() == tmp_path / "variable"
    monkeypatch.delenv("RQLIB_DATA")
    monkeypatch.setenv("RQLIB_ROOT", str(tmp_path))
    assert datasets.data_root() == tmp_path / "data"


def test_pixels_and_gray_levels():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    pixels = datasets.to_pixels(levels)
    assert torch.equal(pixels.flatten()[[0, 51, 255]], torch.tensor([0.0, 0.2, 1.0]))
    assert torch.equal(datasets.to_uint8(pixels), levels)
    assert datasets.to_uint8(torch.tensor([-0.5, 1.5, 0.5 / 255 + 1e-4])).tolist() == [0, 255, 1]
    assert torch.equal(datasets.to_pixels(torch.tensor([0.25], dtype=torch.bfloat16)), torch.tensor([0.25]))


@given(st.integers(0, 40), st.integers(1, 50), st.booleans(), st.booleans())
def test_batches_have_every_image_once_with_its_label(count, batch_size, shuffle, floating):
    images = numbered(count) / 255 if floating else numbered(count)
    with runtime.using("cpu", "float32"):
        found = list(datasets.batches(images, torch.arange(count), batch_size, shuffle=shuffle))
    assert [len(x) for x, _ in found[:-1]] == [batch_size] * (len(found) - 1)
    labels = torch.cat([y for _, y in found]) if found else torch.arange(0)
    assert torch.equal(labels.sort().values, torch.arange(count))
    assert all(torch.equal(x[:, 0, 0, 0], y.float() / 255) for x, y in found)
    assert shuffle or torch.equal(labels, torch.arange(count))


def test_batches_are_pixels_channels_last_and_copies(digits):
    before = digits.test.images.clone()
    for x, y in datasets.batches(*digits.test, 120, augment=digits.augment, rng=runtime.rng(0)):
        assert x.dtype == torch.float32
        assert x.shape == (120, 3, 32, 32)
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert 0 <= x.min() < x.max() <= 1
        assert y.dtype == torch.int64
        x.zero_()
    assert torch.equal(digits.test.images, before)


def test_order_and_augmentation_come_from_the_rng_alone(digits):
    def walk(rng: torch.Generator) -> list:
        parts = datasets.batches(*digits.test, 100, shuffle=True, augment=digits.augment, rng=rng)
        return [torch.cat(part) for part in zip(*parts, strict=True)]

    before, rng = torch.get_rng_state(), runtime.rng(0)
    first, later, same, other = walk(rng), walk(rng), walk(runtime.rng(0)), walk(runtime.rng(1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, first, same))
    assert not torch.equal(first[1], other[1])
    assert not torch.equal(first[1], later[1]), "the next epoch has another order"


def test_augment_shifts_and_flips_only_where_the_set_allows(digits):
    x = torch.arange(32, dtype=torch.uint8).expand(64, 3, 32, 32)  # every row ascends from left to right
    still = digits.augment(x, rng=runtime.rng(0))
    assert (still[..., 5:-4].int().diff() > 0).all()
    flipping = dataclasses.replace(digits, horizontal_flip=True)
    flipped = flipping.augment(x, rng=runtime.rng(0))
    assert 16 < (flipped[:, 0, 0, 15] > flipped[:, 0, 0, 16]).sum() < 48


def command_line(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["python -m rqlib.data", *arguments])
    runpy.run_module("rqlib.data", run_name="__main__")


def test_command_line_says_what_is_there(monkeypatch, capsys):
    command_line(monkeypatch, "digits")
    assert "1,293 train" in capsys.readouterr().out


def test_command_line_fails_with_one_line(monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match="expected a folder or a .zip of images, found none of: .*nowhere.zip"):
        command_line(monkeypatch, "imagefolder:nowhere.zip", "--root", str(tmp_path))


def test_a_real_zip_of_gray_images(tmp_path, monkeypatch):
    monkeypatch.setenv("RQLIB_CACHE", str(tmp_path))
    dataset = datasets.load(f"imagefolder:{shared('mnist10k.zip')}")
    assert repr(dataset) == "MNIST-10k: 7,200 train, 800 validation, 2,000 test images of 1x28x28 in 10 classes"
    assert not dataset.horizontal_flip
    assert dataset.spec.mean[0] == pytest.approx(0.1307, abs=2e-3)
    assert dataset.spec.std[0] == pytest.approx(0.3081, abs=2e-3)


def test_a_real_zip_of_60000_color_images():
    path = shared("cifar10-jpeg.zip")
    dataset = datasets.load(f"imagefolder:{path}")
    assert repr(dataset).startswith("CIFAR-10 (JPEG): 45,000 train, 5,000 validation, 10,000 test images of 3x32x32")
    assert dataset.classes[:3] == ("airplane", "automobile", "bird")
    assert dataset.horizontal_flip
    assert dataset.spec.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=1e-3)  # of the original images
    assert dataset.spec.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=3e-3)
    assert dataset.test.labels.bincount().tolist() == [1000] * 10
    assert dataset.test.labels[:500].bincount().min() > 25, "the first images are a fair sample"
    assert imagefolder.cache_file(path).is_file()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu_images_are_moved_once_and_batches_are_the_same(digits):
    with runtime.using("cuda", "float32"):
        moved = datasets.load("digits")
        assert moved.train.images.is_cuda
        assert moved.test.labels.is_cuda
        options = {"shuffle": True, "augment": moved.augment}
        on_gpu = list(datasets.batches(*moved.test, 64, **options, rng=runtime.rng(0)))
    on_cpu = list(datasets.batches(*digits.test, 64, **options, rng=runtime.rng(0)))
    for (x, y), (same_x, same_y) in zip(on_gpu, on_cpu, strict=True):
        assert x.is_cuda
        assert torch.allclose(x.cpu(), same_x, atol=1e-7)
        assert torch.equal(y.cpu(), same_y)


def test_the_first_images_of_a_split_or_of_the_whole_set(digits):
    few = digits.take(train=7, validation=3)
    assert [len(split.labels) for split in splits(few)] == [7, 3, 360]
    assert few.test is digits.test
    assert torch.equal(few.train.images, digits.train.images[:7])
    assert torch.equal(digits.test.take(5).labels, digits.test.labels[:5])
    assert len(digits.test.take(10**6).labels) == len(digits.test.labels)
    assert torch.equal(digits.calibration(16), digits.train.images[:16])


@pytest.mark.parametrize(
    ("count", "size", "least", "expected"),
    [
        (65, 64, 1, [64, 1]),
        (65, 64, 2, [65]),
        (130, 64, 2, [64, 64, 2]),
        (129, 64, 2, [64, 65]),
        (1, 64, 2, [1]),
        (0, 64, 2, []),
    ],
)
def test_a_last_batch_that_is_too_small_joins_the_one_before(count, size, least, expected):
    x, y = torch.arange(count).view(-1, 1, 1, 1).byte(), torch.arange(count)
    found = list(datasets.batches(x, y, size, least=least, shuffle=True, rng=torch.Generator().manual_seed(3)))
    assert [len(labels) for _, labels in found] == expected
    order = torch.randperm(count, generator=torch.Generator().manual_seed(3))
    assert torch.equal(torch.cat([labels for _, labels in found] or [order]), order)
