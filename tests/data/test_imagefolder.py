"""A user's own images: what is read, what is kept, and every fault named."""

import os
import shutil
import zipfile
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from rqlib import data
from rqlib.core import files
from rqlib.data import decoding, imagefolder

COLORS = {"cat": 40, "dog": 120, "owl": 200}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RQLIB_CACHE", str(tmp_path / "cache"))


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


def test_folder_and_zip_hold_the_same(folder, tmp_path):
    content = imagefolder.read(folder)
    assert_whole(content)
    assert same(content, imagefolder.read(zipped(folder, tmp_path / "images.zip")))
    assert content[0][1][:12].unique().numel() == 3, "the first half has all classes"


def test_a_zip_of_the_folder_itself_and_a_macs_leftovers(folder, tmp_path):
    (folder / "__MACOSX" / "train" / "cat").mkdir(parents=True)
    (folder / "__MACOSX" / "train" / "cat" / "._0.png").write_bytes(b"resource")
    (folder / "train" / "cat" / "._0.png").write_bytes(b"resource")
    (folder / "train" / ".cache").mkdir()
    (folder / "train" / "cat" / "notes.txt").write_text("not an image")
    assert_whole(imagefolder.read(folder))
    assert_whole(imagefolder.read(zipped(folder, tmp_path / "wrapped.zip", base=tmp_path)))


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


def test_gray_jpeg_images_are_read_as_pillow_reads_them_and_have_one_channel(folder):
    for path in folder.rglob("*.png"):
        Image.open(path).convert("L").save(path.with_suffix(".jpg"))
        path.unlink()
    (images, _), _, _ = imagefolder.read(folder)
    assert images.shape == (24, 1, 5, 6)
    expected = [numpy.asarray(Image.open(path)) for path in folder.glob("train/*/*.jpg")]
    assert {image.tobytes() for image in expected} == {image[0].numpy().tobytes() for image in images}
    assert data.load(f"imagefolder:{folder}", channels=3).spec.shape == (3, 5, 6)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_read_again_from_what_was_kept(folder, tmp_path, monkeypatch, kind):
    path = folder if kind == "folder" else zipped(folder, tmp_path / "images.zip")
    first = imagefolder.read(path)
    monkeypatch.setattr(imagefolder, "_decoded", lambda path: pytest.fail("decoded again"))
    again = imagefolder.read(path)
    assert same(first, again)
    assert again[0][0].is_contiguous(memory_format=torch.channels_last)


def rename_class(folder: Path) -> None:
    for part in ("train", "test"):
        (folder / part / "cat").rename(folder / part / "lynx")


def replace_within_the_same_size(folder: Path) -> None:
    path = folder / "train/cat/0.png"
    path.write_bytes((folder / "train/dog/0.png").read_bytes())
    os.utime(path, ns=(10**18, 10**18))


CHANGES = {
    "one more": lambda folder: Image.new("RGB", (6, 5), (9, 9, 9)).save(folder / "train/cat/new.png"),
    "one less": lambda folder: (folder / "train/cat/3.png").unlink(),
    "another name of a class": rename_class,
    "another image of the same size": replace_within_the_same_size,
}


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_images_are_read_anew(folder, tmp_path, change, kind):
    def read() -> tuple:
        return imagefolder.read(folder if kind == "folder" else zipped(folder, tmp_path / "images.zip"))

    before = read()
    change(folder)
    after = read()
    assert not same(before, after)
    assert len(list((tmp_path / "cache").iterdir())) == 1, "what was kept before is replaced"


def flip_a_pixel(cache: Path) -> None:
    content = files.load_tensors(cache)
    content["train_images"][3, 0, 0, 0] ^= 1
    files.save_tensors(cache, content)


def swap_a_label(cache: Path) -> None:
    content = files.load_tensors(cache)
    content["test_labels"][0] = (content["test_labels"][0] + 1) % 3
    files.save_tensors(cache, content)


DAMAGES = {
    "cut off": lambda cache: cache.write_bytes(cache.read_bytes()[:-100]),
    "a pixel": flip_a_pixel,
    "a label": swap_a_label,
    "another file": lambda cache: files.save_tensors(cache, {"weight": torch.zeros(3)}),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_what_was_kept_or_another_version_kept_is_not_trusted(folder, damage, monkeypatch):
    before = imagefolder.read(folder)
    cache = imagefolder.cache_file(folder)
    damage(cache)
    assert same(before, imagefolder.read(folder))
    assert imagefolder._kept(cache, imagefolder._digest(folder)) is not None, "kept again"
    monkeypatch.setattr(imagefolder, "_VERSION", "another")
    assert imagefolder._kept(cache, imagefolder._digest(folder)) is None


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


@pytest.mark.parametrize("fault", [PermissionError("read-only"), RuntimeError("no space left")])
def test_where_nothing_can_be_kept_the_images_are_read_with_a_warning(folder, monkeypatch, fault):
    def fail(content, path):
        raise fault

    monkeypatch.setattr(torch, "save", fail)
    with pytest.warns(UserWarning, match=f"cannot keep the decoded images in .*{fault}.*RQLIB_CACHE"):
        assert_whole(imagefolder.read(folder))


def emptied(folder: Path) -> Path:
    shutil.rmtree(folder)
    folder.mkdir()
    return folder


FAULTS = {
    "no test": (
        lambda folder: shutil.rmtree(folder / "test"),
        "expected images in train/CLASS/.* and test/CLASS/.*, found no test/CLASS/",
    ),
    "no classes": (lambda folder: emptied(folder / "train"), "found no train/CLASS/"),
    "only notes": (
        lambda folder: (emptied(folder / "test/owl") / "notes.txt").write_text("none yet"),
        "no image in test/owl/",
    ),
    "one class": (
        lambda folder: [shutil.rmtree(folder / part / name) for part in ("train", "test") for name in ("dog", "owl")],
        "expected at least two classes in train/, got one .cat.; add images of what it is to be told from",
    ),
    "strange class": (
        lambda folder: (folder / "train/owl").rename(folder / "owl"),
        "test/ has classes that train/ lacks: owl",
    ),
    "corrupt": (
        lambda folder: (folder / "train/dog/2.png").write_bytes(b"not a picture"),
        "cannot read image .*train/dog/2.png in .*repair or remove it",
    ),
    "deep": (
        lambda folder: Image.fromarray(numpy.full((5, 6), 40000, numpy.uint16)).save(folder / "train/cat/0.png"),
        "cannot read image .*train/cat/0.png in .*expected 8 bits per channel, got mode I;16",
    ),
    "odd size": (
        lambda folder: Image.new("RGB", (7, 5)).save(folder / "test/owl/2.png"),
        "expected all images of one size, 6x5 as .*png, got 7x5 in .*test/owl/2.png; resize",
    ),
}


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize(("break_", "words"), FAULTS.values(), ids=FAULTS)
def test_every_fault_is_named_and_nothing_is_kept(folder, tmp_path, break_, words, kind):
    break_(folder)
    path = folder if kind == "folder" else zipped(folder, tmp_path / "images.zip")
    with pytest.raises(ValueError, match=words) as caught:
        imagefolder.read(path)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "cache").exists()


def damaged(raw: bytes, folder: Path) -> bytes:
    """The .zip with one byte of an image changed."""
    at = raw.index((folder / "train/cat/4.png").read_bytes()) + 40
    return raw[:at] + bytes([raw[at] ^ 255]) + raw[at + 1 :]


@pytest.mark.parametrize(
    ("break_", "words"),
    [
        (lambda raw, folder: b"not a zip", "expected a folder or .zip of images, got .*images.zip"),
        (lambda raw, folder: raw[:-200], "no whole .zip"),
        (damaged, "cannot read image train/cat/4.png in .*Bad CRC-32"),
    ],
    ids=["foreign", "cut off", "damaged"],
)
def test_a_faulty_zip_is_named(folder, tmp_path, break_, words):
    path = zipped(folder, tmp_path / "images.zip")
    path.write_bytes(break_(path.read_bytes(), folder))
    with pytest.raises(ValueError, match=words):
        imagefolder.read(path)


def upright() -> numpy.ndarray:
    """White above, black below; wider than high."""
    picture = numpy.zeros((16, 24, 3), numpy.uint8)
    picture[:8] = 255
    return picture


def turned(orientation: int) -> tuple[Image.Image, Image.Exif]:
    """The upright picture as a camera stores it that says so by an EXIF orientation."""
    back = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90"}
    back |= {7: "TRANSVERSE", 8: "ROTATE_270"}
    exif = Image.Exif()
    exif[0x0112] = orientation
    return Image.fromarray(upright()).transpose(getattr(Image.Transpose, back[orientation])), exif


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_images_are_turned_as_they_say(tmp_path, suffix, kind):
    for part in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / "own" / part / name).mkdir(parents=True)
            Image.fromarray(upright()).save(tmp_path / "own" / part / name / "1.png")
    for orientation in range(2, 9):
        image, exif = turned(orientation)
        image.save(tmp_path / "own/train/a" / f"{orientation}{suffix}", exif=exif)
    path = tmp_path / "own"
    (images, _), _, _ = imagefolder.read(path if kind == "folder" else zipped(path, tmp_path / "own.zip"))
    assert images.shape == (9, 3, 16, 24)
    assert (images[:, :, :7] > 240).all()
    assert (images[:, :, 9:] < 15).all()


def see_through(mode: str) -> Image.Image:
    """Left half transparent, of a hidden color; right half opaque black."""
    image = Image.new("RGBA", (6, 5), (200, 30, 90, 0))
    image.paste((0, 0, 0, 255), (3, 0, 6, 5))
    if mode == "P":
        palette = Image.new("P", (6, 5), 1)
        palette.putpalette([0, 0, 0, 200, 30, 90])
        palette.paste(0, (3, 0, 6, 5))
        palette.info["transparency"] = 1
        return palette
    if mode == "L":
        gray = Image.new("L", (6, 5), 90)
        gray.paste(0, (3, 0, 6, 5))
        gray.info["transparency"] = 90
        return gray
    return image.convert(mode)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("RGBA", ".png"), ("LA", ".png"), ("P", ".png"), ("P", ".gif"), ("L", ".png"), ("RGBA", ".webp")],
)
def test_transparent_pixels_are_put_on_white_which_is_said_once_per_load(folder, mode, suffix):
    image = see_through(mode)
    for name in ("train/cat/clear", "test/dog/clear"):
        options = {"transparency": image.info["transparency"]} if "transparency" in image.info else {}
        image.save((folder / name).with_suffix(suffix), **options, **({"lossless": True} if suffix == ".webp" else {}))
    for _ in range(2):  # the second time from what was kept
        with pytest.warns(UserWarning, match="images: 2 images have transparent pixels.*put on white") as said:
            (images, _), _, _ = imagefolder.read(folder)
        assert len(said) == 1
        (found,) = images[images[:, 0, 0, -1] == 0]
        assert (found[..., :3] == 255).all()
        assert not found[..., 3:].any()


def test_half_transparent_is_half_white():
    image, transparent = decoding.seen(Image.new("RGBA", (1, 1), (0, 100, 200, 51)))
    assert transparent
    assert image.getpixel((0, 0)) == (204, 224, 244)  # 255 - (255 - color) / 5
    gray, transparent = decoding.seen(Image.new("LA", (1, 1), (0, 255)))
    assert (gray.mode, gray.getpixel((0, 0)), transparent) == ("L", 0, False)
