"""ImageNet in torchvision's layout, tiny: read when indexed, never as a whole."""

from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from rqlib import data, measures
from rqlib.core import runtime, torchvision_guard
from rqlib.data import imagenet

WNIDS = ("n01440764", "n02012849", "n03126707")
NAMES = (("tench", "Tinca tinca"), ("crane",), ("crane",))
RANDOM = numpy.random.default_rng(0)


def write_imagenet(root: Path, count: int = 30) -> Path:
    """``count`` validation images, image i of class i mod 3 and colored by its class; alternately gray."""
    folder = root / "imagenet"
    wnids = [WNIDS[i % 3] for i in range(count)]
    for index, wnid in enumerate(wnids):
        path = folder / "val" / wnid / f"ILSVRC2012_val_{index:08d}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        gray = 60 * (index % 3) + 40
        mode, color = ("L", gray) if index % 2 else ("RGB", (gray, gray, gray))
        Image.new(mode, (300, 260 + index), color).save(path)
    torch.save((dict(zip(WNIDS, NAMES, strict=True)), wnids), folder / "meta.bin")
    return folder


@pytest.fixture
def dataset(tmp_path) -> data.ImageDataset:
    write_imagenet(tmp_path)
    return data.load("imagenet", tmp_path)


def test_images_are_read_when_indexed(dataset):
    assert repr(dataset) == "ImageNet: 2 train, 1 validation, 27 test images of 3x224x224 in 3 classes"
    assert dataset.classes == ("tench", "crane", "crane")
    assert (dataset.spec.mean, dataset.spec.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    images, labels = dataset.test
    assert isinstance(images, imagenet.ImageFiles)
    assert images.shape == (27, 3, 224, 224)
    some = images[torch.tensor([5, 0, 5])]
    assert some.dtype == torch.uint8
    assert some.shape == (3, 3, 224, 224)
    assert torch.equal(some[0], some[2])
    assert torch.equal(some[1], images[0])
    assert torch.equal(images[3:6][0], images[3])
    assert images[27:].shape == (0, 3, 224, 224)
    brightness = images[:].float().mean((1, 2, 3))
    assert torch.equal(((brightness - 40) / 60).round().long(), labels)


def test_splits_are_disjoint_mixed_and_whole(dataset):
    paths = [split.images.paths for split in (dataset.train, dataset.validation, dataset.test)]
    assert len(set().union(*paths)) == sum(map(len, paths)) == 30
    assert paths[2] != sorted(paths[2])


def test_image_is_the_center_of_the_resized_file(dataset):
    images = dataset.test.images
    path = images.paths[0]
    Image.fromarray(RANDOM.integers(0, 256, (300, 400, 3), dtype=numpy.uint8)).save(path)
    with Image.open(path) as image:
        width, height = image.size
        scale = 256 / min(width, height)
        resized = image.convert("RGB").resize((int(width * scale), int(height * scale)), Image.Resampling.BILINEAR)
    left, top = round((resized.width - 224) / 2), round((resized.height - 224) / 2)
    expected = numpy.asarray(resized.crop((left, top, left + 224, top + 224)))
    assert numpy.abs(images[0].permute(1, 2, 0).numpy().astype(int) - expected).max() <= 1


def test_an_image_is_turned_as_it_says_and_put_on_white_with_one_warning(dataset):
    images, exif = dataset.test.images, Image.Exif()
    exif[0x0112] = 6
    picture = numpy.zeros((300, 300, 3), numpy.uint8)
    picture[:150] = 255
    Image.fromarray(picture).rotate(90).save(images.paths[0], exif=exif)
    assert images[0][:, :100].min() > 240
    assert images[0][:, 124:].max() < 15
    for path in images.paths[1:3]:
        Image.new("RGBA", (300, 300), (9, 9, 9, 0)).save(path, format="PNG")
    with pytest.warns(UserWarning, match="and perhaps others have transparent pixels") as said:
        found = images[1:4]
    assert len(said) == 1
    assert torch.equal(dataset.test.images[1], found[0]), "without another warning"
    assert (found[:2] == 255).all()
    assert (found[2] < 255).any()


def test_batches_and_accuracy_read_from_the_files(dataset):
    class Brightness(torch.nn.Module):
        def forward(self, x):
            level = (x.mean((1, 2, 3)) * 255 - 40) / 60
            return -(level[:, None] - torch.arange(3)).abs()

    assert measures.accuracy(Brightness(), *dataset.test, batch_size=8) == 1
    shuffled = list(data.batches(*dataset.test, 10, shuffle=True, rng=runtime.rng(0)))
    assert [len(x) for x, _ in shuffled] == [10, 10, 7]
    x, y = shuffled[0]
    assert x.dtype == torch.float32
    assert torch.equal(Brightness()(x).argmax(1), y)


def test_a_missing_or_half_extracted_set_is_refused(tmp_path):
    torchvision_guard.torchvision()
    with pytest.raises(FileNotFoundError, match=f"ImageNet is not in {tmp_path}/imagenet .*img_val.tar there"):
        data.load("imagenet", tmp_path)
    next(write_imagenet(tmp_path).glob("val/*/*.JPEG")).unlink()
    with pytest.raises(ValueError, match="expected the 30 validation images that meta.bin lists, found 29 in val/"):
        data.load("imagenet", tmp_path)


def test_a_corrupt_image_is_named(dataset):
    images = dataset.test.images
    Path(images.paths[4]).write_bytes(b"no image")
    assert len(images[:4]) == 4
    with pytest.raises(ValueError, match=f"cannot read image {images.paths[4]}"):
        images[:8]
