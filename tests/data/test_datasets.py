"""Named sets, splits and batches; the files of each source are tested in its own file."""

import dataclasses
import os
import runpy
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rqlib import measures
from rqlib.core import files, runtime
from rqlib.data import datasets, imagefolder
from rqlib.data.augmentation import crop_and_flip

SHARED = Path(os.environ.get("RQLIB_SHARED", Path(__file__).parents[2] / "shared" / "data"))


def shared(name: str) -> Path:
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"no {name} in {SHARED} (name its folder in RQLIB_SHARED)")
    return path


@pytest.fixture(autouse=True)
def on_cpu():
    with runtime.using("cpu", "float32"):
        yield


@pytest.fixture(scope="module")
def digits() -> datasets.ImageDataset:
    with runtime.using("cpu", "float32"):
        return datasets.load("digits")


def rows_of(images: torch.Tensor) -> set[bytes]:
    return {image.contiguous().numpy().tobytes() for image in images}


def numbered(count: int) -> torch.Tensor:
    """Images that say which they are: image i is i in every pixel."""
    return torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 3, 4, 4).contiguous()


def test_digits_are_the_1797_of_scikit_learn(digits):
    from sklearn.datasets import load_digits

    whole = load_digits()
    labels = torch.cat([split.labels for split in (digits.train, digits.validation, digits.test)])
    assert torch.equal(labels.bincount(), torch.from_numpy(whole.target).bincount())
    images = torch.cat([split.images for split in (digits.train, digits.validation, digits.test)])
    assert images.dtype == torch.uint8
    assert images.shape == (1797, 3, 32, 32)
    assert labels.dtype == torch.int64
    assert images.float().mean() / 255 == pytest.approx(whole.images.mean() / 16, abs=2e-3)
    assert torch.equal(images[:, 0], images[:, 2])


def test_a_digit_is_the_smoothed_original(digits):
    """Averaging 4x4 blocks of the resized digits nearly gives the 8x8 originals back."""
    from sklearn.datasets import load_digits

    originals = torch.from_numpy(load_digits().images).float().flatten(1) / 16
    small = torch.nn.functional.avg_pool2d(digits.test.images[:50, :1].float() / 255, 4).flatten(1)
    nearest = torch.cdist(small, originals).argmin(1)
    assert torch.equal(torch.from_numpy(load_digits().target)[nearest], digits.test.labels[:50])


def test_digits_are_split_alike_in_every_class(digits):
    assert len(digits.test.labels) == 360
    assert digits.test.labels.bincount().min() >= 34
    assert len(digits.validation.labels) == 144
    assert len(digits.train.labels) == 1293


def test_train_validation_and_test_are_disjoint(digits):
    parts = [rows_of(split.images) for split in (digits.train, digits.validation, digits.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 1797


def test_properties_of_digits(digits):
    assert digits.name == digits.title == "digits"
    assert digits.classes == tuple("0123456789")
    assert not digits.horizontal_flip
    assert digits.spec.shape == (3, 32, 32)
    assert digits.spec.num_classes == 10
    assert repr(digits) == "digits: 1,293 train, 144 validation, 360 test images of 3x32x32 in 10 classes"


def test_images_are_held_channels_last(digits):
    for split in (digits.train, digits.validation, digits.test):
        assert split.images.is_contiguous(memory_format=torch.channels_last)


def test_spec_has_mean_and_std_of_the_training_images(digits):
    images = torch.cat([digits.train.images, digits.validation.images]).double() / 255
    assert digits.spec.mean == pytest.approx(images.mean((0, 2, 3)).tolist(), abs=6e-5)
    assert digits.spec.std == pytest.approx(images.std((0, 2, 3), correction=0).tolist(), abs=6e-5)


@given(st.integers(1, 30), st.integers(1, 3), st.integers(0, 2**31))
def test_mean_and_std_agree_with_torch(count, channels, seed):
    images = torch.randint(0, 256, (count, channels, 3, 5), dtype=torch.uint8, generator=runtime.rng(seed))
    std, mean = torch.std_mean(images.double() / 255, (0, 2, 3), correction=0)
    ours_mean, ours_std = datasets.mean_and_std(images)
    assert ours_mean == pytest.approx(mean.tolist(), abs=6e-5)
    assert ours_std == pytest.approx(std.tolist(), abs=6e-5)


def test_std_of_equal_pixels_is_one_gray_level():
    assert datasets.mean_and_std(torch.full((2, 1, 4, 4), 51, dtype=torch.uint8)) == ((0.2,), (round(1 / 255, 4),))


def test_channels_repeat_gray_images(digits):
    gray = datasets.load("digits", channels=1)
    assert gray.spec.shape == (1, 32, 32)
    assert torch.equal(gray.test.images[:, 0], digits.test.images[:, 1])
    assert gray.spec.mean == digits.spec.mean[:1]


def test_a_set_is_the_same_each_time(digits):
    again = datasets.load("digits")
    assert torch.equal(again.train.images, digits.train.images)
    assert torch.equal(again.validation_indices, digits.validation_indices)


def test_validation_depends_on_its_seed_and_test_does_not(digits):
    other = datasets.load("digits", validation_seed=1)
    assert not torch.equal(other.validation_indices, digits.validation_indices)
    assert torch.equal(other.test.images, digits.test.images)
    assert other.spec == digits.spec


@given(st.integers(2, 500), st.integers(0, 2**62))
def test_held_out_is_a_tenth_and_the_rest_is_the_rest(count, seed):
    rest, held_out = datasets.hold_out(count, seed)
    assert len(held_out) == max(1, round(count / 10))
    assert torch.equal(torch.cat([rest, held_out]).sort().values, torch.arange(count))
    assert torch.equal(held_out, held_out.sort().values)


def test_validation_indices_point_into_the_sets_own_training_images(digits):
    train, _, _ = datasets.sources.SOURCES["digits"].read(Path())
    images, labels = train
    assert torch.equal(images[digits.validation_indices, 0], digits.validation.images[:, 0])
    assert torch.equal(labels[digits.validation_indices], digits.validation.labels)


def test_one_training_image_cannot_be_split():
    with pytest.raises(ValueError, match="at least 2 training images.* got 1"):
        datasets.hold_out(1, 0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar11", r"unknown dataset 'cifar11' \(did you mean 'cifar10'\?\)"),
        ("imagefolder", r"did you mean 'imagefolder:PATH'\?"),
        ("imagefolder:", r"did you mean 'imagefolder:PATH'\?"),
        ("", "unknown dataset ''; known: digits, cifar10"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(ValueError, match=message):
        datasets.load(name)


def test_root_is_the_argument_then_the_variable_then_the_projects_data(tmp_path, monkeypatch):
    monkeypatch.setenv("RQLIB_DATA", str(tmp_path / "variable"))
    assert datasets.data_root(tmp_path / "argument") == tmp_path / "argument"
    assert datasets.data_root() == tmp_path / "variable"
    monkeypatch.delenv("RQLIB_DATA")
    monkeypatch.setenv("RQLIB_ROOT", str(tmp_path))
    assert datasets.data_root() == tmp_path / "data"


def test_project_root_is_found_from_within_and_from_elsewhere(tmp_path, monkeypatch):
    monkeypatch.delenv("RQLIB_ROOT", raising=False)
    project = Path(files.__file__).parents[2]
    for folder in (project, project / "tests", tmp_path):
        monkeypatch.chdir(folder)
        assert files.project_root() == project
    (tmp_path / "pyproject.toml").write_text('name = "rqlib"')
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert files.project_root() == tmp_path


def test_to_pixels():
    assert torch.equal(datasets.to_pixels(torch.tensor([0, 51, 255], dtype=torch.uint8)), torch.tensor([0.0, 0.2, 1.0]))
    assert torch.equal(datasets.to_pixels(torch.tensor([0.25], dtype=torch.bfloat16)), torch.tensor([0.25]))
    with pytest.raises(ValueError, match="expected images uint8, or floating point.*got torch.int64"):
        datasets.to_pixels(torch.tensor([3]))


@given(st.integers(1, 40), st.integers(1, 50), st.booleans())
def test_batches_have_every_image_once_with_its_label(count, batch_size, shuffle):
    with runtime.using("cpu", "float32"):
        found = list(datasets.batches(numbered(count), torch.arange(count), batch_size, shuffle=shuffle))
    assert [len(x) for x, _ in found[:-1]] == [batch_size] * (len(found) - 1)
    labels = torch.cat([y for _, y in found])
    assert torch.equal(labels.sort().values, torch.arange(count))
    assert torch.equal(torch.cat([x for x, _ in found])[:, 0, 0, 0], labels.float() / 255)
    assert shuffle or torch.equal(labels, torch.arange(count))


def test_batches_are_pixels_channels_last(digits):
    x, y = next(iter(datasets.batches(*digits.train, 16, shuffle=True, augment=digits.augment)))
    assert x.dtype == torch.float32
    assert x.shape == (16, 3, 32, 32)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert x.min() >= 0
    assert x.max() <= 1
    assert y.dtype == torch.int64


def test_the_same_generator_state_gives_the_same_batches(digits):
    def walk(seed: int) -> list:
        generator = runtime.rng(seed)
        parts = datasets.batches(*digits.test, 100, shuffle=True, augment=digits.augment, rng=generator)
        return [torch.cat(part) for part in zip(*parts, strict=True)]

    first, same, other = walk(0), walk(0), walk(1)
    assert torch.equal(first[0], same[0])
    assert torch.equal(first[1], same[1])
    assert not torch.equal(first[1], other[1])


def test_shuffling_differs_from_epoch_to_epoch(digits):
    generator = runtime.rng(3)
    first, second = (
        torch.cat([y for _, y in datasets.batches(*digits.test, 64, shuffle=True, rng=generator)]) for _ in range(2)
    )
    assert not torch.equal(first, second)


def test_order_and_augmentation_do_not_touch_the_global_random_state(digits):
    before = torch.get_rng_state()
    list(datasets.batches(*digits.test, 64, shuffle=True, augment=digits.augment, rng=runtime.rng(0)))
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_leave_the_images_as_they_were(digits):
    before = digits.test.images.clone()
    for x, _ in datasets.batches(*digits.test, 64, augment=digits.augment, rng=runtime.rng(0)):
        x.zero_()
    assert torch.equal(digits.test.images, before)


def test_batches_of_floating_point_images():
    images = torch.rand(5, 1, 6, 6)
    x = torch.cat([x for x, _ in datasets.batches(images, torch.zeros(5).long(), 2)])
    assert torch.equal(x, images)


def test_no_images_no_batches():
    assert list(datasets.batches(numbered(0), torch.arange(0), 4, shuffle=True)) == []


@pytest.mark.parametrize(
    ("labels", "batch_size", "message"),
    [(3, 2, "one label an image, got 4 images and 3 labels"), (4, 0, "batch_size of at least 1, got 0")],
)
def test_bad_batches_are_refused_at_the_call(labels, batch_size, message):
    with pytest.raises(ValueError, match=message):
        datasets.batches(numbered(4), torch.arange(labels), batch_size)


def test_augment_shifts_and_flips_only_where_the_set_allows(digits):
    x = torch.arange(32, dtype=torch.uint8).expand(64, 3, 32, 32)  # every row ascends from left to right
    still = digits.augment(x, rng=runtime.rng(0))
    assert (still[..., 5:-4].int().diff() > 0).all()
    flipping = dataclasses.replace(digits, horizontal_flip=True)
    flipped = flipping.augment(x, rng=runtime.rng(0))
    assert 16 < (flipped[:, 0, 0, 15] > flipped[:, 0, 0, 16]).sum() < 48
    assert datasets.crop_and_flip is crop_and_flip


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
    centers = torch.stack([dataset.train.images[dataset.train.labels == k].double().mean(0) for k in range(10)])
    nearest = torch.cdist(dataset.test.images.double().flatten(1), centers.flatten(1)).argmin(1)
    assert (nearest == dataset.test.labels).double().mean() > 0.75  # nearest mean is right in about 0.82
    assert datasets.load(f"imagefolder:{shared('mnist10k.zip')}", channels=3).spec.shape == (3, 28, 28)


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


def test_accuracy_reads_an_image_set(digits):
    class BrightestFirst(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.one_hot((x.mean((1, 2, 3)) > 0.3).long(), 10).float()

    expected = (digits.test.images.float().mean((1, 2, 3)) / 255 > 0.3).long() == digits.test.labels
    assert measures.accuracy(BrightestFirst(), *digits.test) == pytest.approx(expected.float().mean().item())


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


def test_to_uint8_is_the_inverse_of_to_pixels_and_clamps():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(datasets.to_uint8(datasets.to_pixels(levels)), levels)
    assert datasets.to_uint8(torch.tensor([-0.5, 1.5, 0.5 / 255 + 1e-4])).tolist() == [0, 255, 1]


def test_the_first_images_of_a_split_or_of_the_whole_set():
    images = datasets.load("digits")
    few = images.take(train=7, validation=3)
    assert [len(split.labels) for split in (few.train, few.validation)] == [7, 3]
    assert few.test is images.test
    assert torch.equal(few.train.images, images.train.images[:7])
    assert torch.equal(images.test.take(5).labels, images.test.labels[:5])
    assert len(images.test.take(10**6).labels) == len(images.test.labels)
    assert torch.equal(images.calibration(16), images.train.images[:16])
