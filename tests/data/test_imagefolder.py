"""A user's own images: what is read, what is kept, and every fault named."""

import os
import shutil
import warnings
import zipfile
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from rqlib import data
from rqlib.core import files, runtime
from rqlib.data import imagefolder

RANDOM = numpy.random.default_rng(0)
COLORS = {"cat": 40, "dog": 120, "owl": 200}


@pytest.fixture(autouse=True)
def on_cpu_with_own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RQLIB_CACHE", str(tmp_path / "cache"))
    with runtime.using("cpu", "float32"):
        yield


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three classes, 8 training and 4 test images each, 6 wide and 5 high, colored by class, left half brighter."""
    folder = tmp_path / "images"
    for part, count in (("train", 8), ("test", 4)):
        for kind, level in COLORS.items():
            (folder / part / kind).mkdir(parents=True)
            for index in range(count):
                pixels = numpy.full((5, 6, 3), level + index, dtype=numpy.uint8)
                pixels[:, :3] += 20
                Image.fromarray(pixels).save(folder / part / kind / f"{index}.png")
    return folder


def zipped(folder: Path, target: Path, base: Path | None = None) -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(base or folder))
    return target


def levels(content: tuple) -> list[torch.Tensor]:
    """Of train and test: the level of gray in the right half of every image."""
    return [images[:, 0, 0, -1].long() for images, _ in content[:2]]


def assert_whole(content: tuple) -> None:
    train, test, classes = content
    assert classes == ("cat", "dog", "owl")
    assert train[0].shape == (24, 3, 5, 6)
    assert test[0].shape == (12, 3, 5, 6)
    for (images, labels), count in ((train, 8), (test, 4)):
        expected = torch.tensor(list(COLORS.values()))[labels]
        found = images[:, 0, 0, -1].long() - expected
        assert torch.equal(found.sort().values, torch.arange(count).repeat_interleave(3))
        assert torch.equal(images[..., 0].long(), images[..., -1].long() + 20)
        assert images.is_contiguous(memory_format=torch.channels_last)


def same(a: tuple, b: tuple) -> bool:
    pairs = zip((*a[0], *a[1]), (*b[0], *b[1]), strict=True)
    return a[2] == b[2] and all(torch.equal(x, y) for x, y in pairs)


def refuse_decoding(monkeypatch) -> None:
    monkeypatch.setattr(imagefolder, "_decoded", lambda path: pytest.fail("decoded again"))


def test_folder_and_zip_hold_the_same(folder, tmp_path):
    content = imagefolder.read(folder)
    assert_whole(content)
    assert same(content, imagefolder.read(zipped(folder, tmp_path / "images.zip")))


def test_a_zip_of_the_folder_itself_and_a_macs_leftovers(folder, tmp_path):
    (folder / "__MACOSX" / "train" / "cat").mkdir(parents=True)
    (folder / "__MACOSX" / "train" / "cat" / "._0.png").write_bytes(b"resource")
    (folder / "train" / "cat" / "._0.png").write_bytes(b"resource")
    (folder / "train" / ".cache").mkdir()
    (folder / "train" / "cat" / "notes.txt").write_text("not an image")
    assert_whole(imagefolder.read(folder))
    assert_whole(imagefolder.read(zipped(folder, tmp_path / "wrapped.zip", base=tmp_path)))


def test_loaded_as_a_data_set(folder):
    dataset = data.load(f"imagefolder:{folder}")
    assert repr(dataset) == "images: 22 train, 2 validation, 12 test images of 3x5x6 in 3 classes"
    assert dataset.spec.shape == (3, 5, 6)


def test_images_are_mixed_the_same_way_each_time(folder, tmp_path):
    first = imagefolder.read(folder)
    shutil.rmtree(tmp_path / "cache")
    assert same(first, imagefolder.read(folder))
    assert first[0][1][:12].unique().numel() == 3, "the first half has all classes"


def test_kinds_of_files_and_color_modes(folder):
    white = numpy.full((5, 6), 255, dtype=numpy.uint8)
    Image.fromarray(white).save(folder / "train/cat/gray.PNG")
    Image.fromarray(white).convert("RGBA").save(folder / "train/cat/alpha.png")
    Image.fromarray(white).convert("P").save(folder / "train/cat/palette.gif")
    Image.fromarray(white).convert("1").save(folder / "train/cat/bits.tif")
    Image.fromarray(white).convert("CMYK").save(folder / "train/cat/print.jpeg")
    (folder / "train/cat/more").mkdir()
    Image.fromarray(white).convert("RGB").save(folder / "train/cat/more/deep.bmp")
    (images, labels), _, _ = imagefolder.read(folder)
    bright = images.float().mean((1, 2, 3)) > 250
    assert bright.sum() == 6
    assert (labels[bright] == 0).all()


def test_gray_images_have_one_channel(folder):
    for path in folder.rglob("*.png"):
        Image.open(path).convert("L").save(path)
    (images, _), _, _ = imagefolder.read(folder)
    assert images.shape == (24, 1, 5, 6)
    assert data.load(f"imagefolder:{folder}", channels=3).spec.shape == (3, 5, 6)


def test_jpeg_is_read_as_pillow_reads_it(folder):
    for path in folder.rglob("*.png"):
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    (images, _), _, _ = imagefolder.read(folder)
    expected = [numpy.asarray(Image.open(path)) for path in folder.glob("train/*/*.jpg")]
    assert {image.tobytes() for image in expected} == {image.permute(1, 2, 0).numpy().tobytes() for image in images}


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_read_again_from_what_was_kept(folder, tmp_path, monkeypatch, kind):
    path = folder if kind == "folder" else zipped(folder, tmp_path / "images.zip")
    first = imagefolder.read(path)
    refuse_decoding(monkeypatch)
    again = imagefolder.read(path)
    assert same(first, again)
    assert again[0][0].is_contiguous(memory_format=torch.channels_last)


def change_bytes(folder: Path) -> None:
    Image.new("RGB", (6, 5), (9, 9, 9)).save(folder / "train/cat/0.png")


def add_image(folder: Path) -> None:
    Image.new("RGB", (6, 5), (9, 9, 9)).save(folder / "train/cat/new.png")


def remove_image(folder: Path) -> None:
    (folder / "train/cat/3.png").unlink()


def rename_class(folder: Path) -> None:
    for part in ("train", "test"):
        (folder / part / "cat").rename(folder / part / "lynx")


def replace_within_the_same_size(folder: Path) -> None:
    path = folder / "train/cat/0.png"
    path.write_bytes((folder / "train/dog/0.png").read_bytes())
    os.utime(path, ns=(10**18, 10**18))


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("change", [change_bytes, add_image, remove_image, rename_class, replace_within_the_same_size])
def test_changed_images_are_read_anew(folder, tmp_path, change, kind):
    def read() -> tuple:
        return imagefolder.read(folder if kind == "folder" else zipped(folder, tmp_path / "images.zip"))

    before = read()
    change(folder)
    after = read()
    assert not same(before, after)
    assert len(list((tmp_path / "cache").iterdir())) == 1, "what was kept before is replaced"


def cut_off(cache: Path) -> None:
    cache.write_bytes(cache.read_bytes()[:-100])


def flip_a_pixel(cache: Path) -> None:
    content = files.load_tensors(cache)
    content["train_images"][3, 0, 0, 0] ^= 1
    files.save_tensors(cache, content)


def swap_a_label(cache: Path) -> None:
    content = files.load_tensors(cache)
    content["test_labels"][0] = (content["test_labels"][0] + 1) % 3
    files.save_tensors(cache, content)


def flip_a_bit_in_the_file(cache: Path) -> None:
    raw = bytearray(cache.read_bytes())
    at = raw.index(files.load_tensors(cache)["train_images"].permute(0, 2, 3, 1).numpy().tobytes())
    raw[at + 5] ^= 4
    cache.write_bytes(raw)


def replace_by_another_file(cache: Path) -> None:
    files.save_tensors(cache, {"weight": torch.zeros(3)})


@pytest.mark.parametrize(
    "damage", [cut_off, flip_a_pixel, swap_a_label, flip_a_bit_in_the_file, replace_by_another_file]
)
def test_what_was_kept_is_not_trusted(folder, damage):
    before = imagefolder.read(folder)
    cache = imagefolder.cache_file(folder)
    damage(cache)
    assert same(before, imagefolder.read(folder))
    assert imagefolder._kept(cache, imagefolder._digest(folder)) is not None, "kept again"


def test_what_another_version_kept_is_read_anew(folder, monkeypatch):
    imagefolder.read(folder)
    monkeypatch.setattr(imagefolder, "_VERSION", "another")
    assert imagefolder._kept(imagefolder.cache_file(folder), imagefolder._digest(folder)) is None


def test_where_it_is_kept(folder, tmp_path, monkeypatch):
    imagefolder.read(folder)
    assert [path.parent for path in tmp_path.rglob("*.pt")] == [tmp_path / "cache"], "not among the user's images"
    monkeypatch.delenv("RQLIB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert imagefolder.cache_file(folder).parent == tmp_path / "xdg" / "rqlib"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert imagefolder.cache_file(folder).parent == tmp_path / "home" / ".cache" / "rqlib"
    assert imagefolder.cache_file(folder) != imagefolder.cache_file(folder.parent / "others" / folder.name)


def test_where_nothing_can_be_kept_the_images_are_read_with_a_warning(folder, tmp_path, monkeypatch):
    (tmp_path / "occupied").touch()
    monkeypatch.setenv("RQLIB_CACHE", str(tmp_path / "occupied"))
    with pytest.warns(UserWarning, match="cannot keep the decoded images in .*occupied.*RQLIB_CACHE"):
        assert_whole(imagefolder.read(folder))


def test_a_full_disk_leaves_what_was_kept_before(folder, tmp_path, monkeypatch):
    imagefolder.read(folder)
    before = imagefolder.cache_file(folder).read_bytes()
    add_image(folder)

    def full(content, path):
        Path(path).write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file: no space left")

    monkeypatch.setattr(torch, "save", full)
    with pytest.warns(UserWarning, match="no space left"):
        imagefolder.read(folder)
    assert imagefolder.cache_file(folder).read_bytes() == before
    assert len(list((tmp_path / "cache").iterdir())) == 1


def break_(folder: Path, fault: str) -> None:
    train, test = folder / "train", folder / "test"
    match fault:
        case "no test":
            shutil.rmtree(test)
        case "no train":
            train.rename(folder / "training")
        case "no classes":
            shutil.rmtree(train)
            train.mkdir()
        case "empty class":
            shutil.rmtree(train / "dog")
            (train / "dog").mkdir()
        case "only notes":
            shutil.rmtree(test / "owl")
            (test / "owl").mkdir()
            (test / "owl" / "notes.txt").write_text("none yet")
        case "strange class":
            (train / "owl").rename(folder / "owl")
        case "corrupt":
            (train / "dog" / "2.png").write_bytes(b"not a picture")
        case "cut off":
            path = test / "cat" / "1.png"
            path.write_bytes(path.read_bytes()[:-30])
        case "empty file":
            (train / "cat" / "5.png").write_bytes(b"")
        case "deep":
            Image.fromarray(numpy.full((5, 6), 40000, dtype=numpy.uint16)).save(train / "cat" / "0.png")
        case "odd size":
            Image.new("RGB", (7, 5)).save(test / "owl" / "2.png")


FAULTS = {
    "no test": "expected images in train/CLASS/.* and test/CLASS/.*, found no test/CLASS/",
    "no train": "found no train/CLASS/",
    "no classes": "found no train/CLASS/",
    "empty class": "no image in train/dog/",
    "only notes": "no image in test/owl/",
    "strange class": "test/ has classes that train/ lacks: owl",
    "corrupt": "cannot read image .*train/dog/2.png in .*repair or remove it",
    "cut off": "cannot read image .*test/cat/1.png in ",
    "empty file": "cannot read image .*train/cat/5.png in ",
    "deep": "cannot read image .*train/cat/0.png in .*expected 8 bits a channel, got mode I;16",
    "odd size": "expected all images of one size, 6x5 as .*png, got 7x5 in .*test/owl/2.png; resize",
}


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_named_and_nothing_is_kept(folder, tmp_path, fault, kind):
    break_(folder, fault)
    path = folder if kind == "folder" else zipped(folder, tmp_path / "images.zip")
    with pytest.raises(ValueError, match=FAULTS[fault]) as caught:
        imagefolder.read(path)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_a_zip_that_is_none(tmp_path):
    path = tmp_path / "images.zip"
    path.write_text("not a zip")
    with pytest.raises(ValueError, match=f"expected a folder or a .zip of images, got {path}"):
        imagefolder.read(path)


def test_a_zip_that_is_cut_off(folder, tmp_path):
    path = zipped(folder, tmp_path / "images.zip")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="no whole .zip"):
        imagefolder.read(path)


def test_a_damaged_image_inside_a_zip_is_named(folder, tmp_path):
    path = zipped(folder, tmp_path / "images.zip")
    raw = bytearray(path.read_bytes())
    at = raw.index((folder / "train/cat/4.png").read_bytes())
    raw[at + 40] ^= 255
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="cannot read image train/cat/4.png in .*Bad CRC-32"):
        imagefolder.read(path)


def test_reading_is_silent(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        imagefolder.read(folder)
