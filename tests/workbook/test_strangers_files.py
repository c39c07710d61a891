"""Small files that ask for much: each is refused by its name before the memory is taken or a read blocks."""

import json
import os
import resource
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image

from rqlib import data, generator, models
from rqlib.core import files
from rqlib.core.vocabulary import ImageSpec
from rqlib.data import imagefolder
from rqlib.pruning import packed

SPEC = ImageSpec()
MOST_MORE = 2**30


@pytest.fixture(autouse=True)
def little_memory(tmp_path, monkeypatch):
    """At most 1 GB more than the process has already; images are kept in a folder of the test."""
    monkeypatch.setenv("RQLIB_CACHE", str(tmp_path / "cache"))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MOST_MORE, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def images(folder: Path) -> Path:
    for part in ("train", "test"):
        for kind in ("cat", "dog"):
            (folder / part / kind).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(folder / part / kind / "0.png")
    return folder


def zip_of(folder: Path, **more: bytes) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for found in sorted(images(folder).rglob("*.png")):
            archive.write(found, found.relative_to(folder))
        for name, content in more.items():
            archive.writestr(f"train/cat/{name}.bmp", content)
    return path


def inflates(folder: Path) -> Path:
    """A zip of 0.3 MB that becomes 300 MB."""
    return zip_of(folder, one=bytes(150_000_000), two=bytes(150_000_000))


def lies(folder: Path) -> Path:
    """A zip with a member that says it has 10 bytes, and inflates to 300 MB."""
    path = zip_of(folder, one=bytes(300_000_000))
    whole = path.read_bytes()
    path.write_bytes(whole.replace(struct.pack("<I", 300_000_000), struct.pack("<I", 10)))
    return path


def many_pixels(folder: Path) -> Path:
    Image.new("1", (5000, 5000)).save(images(folder) / "train/cat/1.png")
    return folder


def many_large_images(folder: Path) -> Path:
    """Images of one size that take 48 MB each, and 0.1 MB in their files."""
    Image.new("L", (4000, 4000)).save(images(folder) / "train/cat/0.png", optimize=True)
    for number in range(1, 60):
        os.link(folder / "train/cat/0.png", folder / f"train/cat/{number}.png")
    for path in (folder / "train/dog/0.png", folder / "test/cat/0.png", folder / "test/dog/0.png"):
        path.unlink()
        os.link(folder / "train/cat/0.png", path)
    return folder


def pipe(folder: Path) -> Path:
    os.mkfifo(images(folder) / "train/cat/1.png")
    return folder


def only_a_pipe(folder: Path) -> Path:
    os.mkfifo(folder)
    return folder


def device(folder: Path) -> Path:
    (images(folder) / "train/cat/1.png").symlink_to("/dev/zero")
    return folder


def broken_link(folder: Path) -> Path:
    (images(folder) / "train/cat/1.png").symlink_to("nowhere")
    return folder


def loop(folder: Path) -> Path:
    (images(folder) / "train/cat/up").symlink_to("..")
    return folder


def two_loops(folder: Path) -> Path:
    for kind, other in (("cat", "dog"), ("dog", "cat")):
        (folder if folder.exists() else images(folder)).joinpath("train", kind, "other").symlink_to(f"../{other}")
    return folder


IMAGES = {
    inflates: "expected its files, unpacked, to take at most 268 MB, .* got 300 MB; nothing was loaded",
    lies: "cannot read image train/cat/one.bmp",
    many_pixels: "cannot read image train/cat/1.png .*expected at most 16,777,216 pixels, got 5000 x 5000",
    many_large_images: "expected its pixels to take at most .* MB, as a file of this size may, got 3,0.. MB",
    pipe: "expected images in regular files, got train/cat/1.png, a pipe or a device; remove it",
    only_a_pipe: "expected a folder or .zip of images, got .*, which is neither",
    device: "expected images in regular files, got train/cat/1.png, a pipe or a device; remove it",
    broken_link: "cannot read train/cat/1.png .No such file or directory.; remove it",
    loop: "train/cat/up/ is a link that leads back to .*train, which holds it; remove the link",
    two_loops: "other/ is a link that leads back to .*(cat|dog), which holds it; remove the link",
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("write", IMAGES, ids=lambda write: write.__name__)
def test_images(tmp_path, write):
    path = write(tmp_path / "theirs")
    assert not path.is_file() or path.stat().st_size < 1_000_000
    with pytest.raises(ValueError, match=f"theirs.*{IMAGES[write]}|{IMAGES[write]}"):
        data.load(f"imagefolder:{path}")


def test_a_class_that_lies_elsewhere_is_read(tmp_path):
    folder = images(tmp_path / "theirs")
    (folder / "train/cat").rename(tmp_path / "elsewhere")
    (folder / "train/cat").symlink_to(tmp_path / "elsewhere")
    train, _, classes = imagefolder.read(folder)
    assert (train[0].shape, classes) == ((2, 3, 4, 4), ("cat", "dog"))


def says(path: Path, **claims) -> Path:
    """A checkpoint of a SmallCNN that claims to be something else."""
    files.save_tensors(path, models.checkpoints.content(models.build("SmallCNN", SPEC), "SmallCNN", SPEC) | claims)
    return path


def spec(**changes) -> dict:
    return {"channels": 3, "height": 32, "width": 32, "num_classes": 10, "mean": [0.5] * 3, "std": [0.5] * 3} | changes


def inflating_weights(path: Path) -> Path:
    """A torch file whose tensors are compressed: 0.3 MB that become 300 MB."""
    torch.save({"weight": torch.zeros(75_000_000)}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


def rqz(path: Path, first: list, **claims) -> Path:
    """A compressed network of a few bytes that describes its first tensor in any way."""
    packed.save(path, models.build("SmallCNN", SPEC), "SmallCNN", SPEC)
    says, layout, how, _ = packed._opened(path)
    return header(path, json.dumps([says | claims, layout, [first, *how[1:]]]).encode())


def header(path: Path, text: bytes) -> Path:
    """A compressed network that is nothing but a header."""
    packer = zlib.compressobj(9, zdict=packed._USUAL)
    whole = packer.compress(text) + packer.flush()
    path.write_bytes(packed._MAGIC + packed._SIZES.pack(len(whole), zlib.crc32(whole)) + whole)
    return path


def large_generator(path: Path) -> Path:
    generator.save(path, generator.build(models.build("SmallCNN", SPEC), SPEC))
    files.save_tensors(path, files.load_tensors(path) | {"channels": 20_000})
    return path


TAKE = "to take at most .* MB, as a file of this size may, got .* MB; nothing was loaded"
FILES = {
    "width 400": (lambda path: says(path, width=400.0), models.load, f"a SmallCNN of width 400.0 {TAKE}"),
    "a billion classes": (lambda path: says(path, spec=spec(num_classes=10**9)), models.load, TAKE),
    "large images": (lambda path: says(path, spec=spec(height=10**5, width=10**5)), models.load, "16,777,216 pixels"),
    "another network": (lambda path: says(path, model="torchvision:vgg19"), models.load, TAKE),
    "width 400, changed": (
        lambda path: says(path, width=400.0, changes={"defended": {"noise_std": 0.1}}),
        models.load,
        TAKE,
    ),
    "a long tensor of one number": (
        lambda path: says(path, width=400.0, state={"weight": torch.zeros(1).expand(10**11)}),
        models.load,
        TAKE,
    ),
    "compressed": (inflating_weights, files.load_tensors, "parts that are compressed or overlap"),
    "an rqz of long texts": (lambda path: rqz(path, ["<U100000000", 0, 0]), packed.load, "as pruning.pack writes it"),
    "an rqz of more nonzeros than weights": (
        lambda path: rqz(path, ["<f4", 10**15, 2]),
        packed.load,
        "expected a tensor of .* values as pruning.pack writes it",
    ),
    "an rqz of a larger codebook than weights": (
        lambda path: rqz(path, ["<f4", -1, 2**60]),
        packed.load,
        "expected a tensor of .* values as pruning.pack writes it",
    ),
    "an rqz of wide gaps": (lambda path: rqz(path, ["<f4", 1, 0, 10**8, 8]), packed.load, "fewer than 24 low bits"),
    "an rqz without its bits": (lambda path: rqz(path, ["<f4", 1, 0, 4, 10**9]), packed.load, "more bits of its tens"),
    "an rqz of a rank above the weight's": (
        lambda path: rqz(path, ["<f4"], changes={"factorized": {"classifier.linear1": 10**6}}),
        packed.load,
        "expected a rank of at most 120 for classifier.linear1",
    ),
    "an rqz of a number": (lambda path: header(path, b"5"), packed.load, "expected a header as pruning.pack writes it"),
    "an rqz of brackets": (lambda path: header(path, b"[" * 10**5), packed.load, "expected a header as pruning.pack"),
    "an rqz of three numbers": (lambda path: header(path, b"[1,2,3]"), packed.load, "expected a header as pruning.p"),
    "a network without a name": (lambda path: says(path, model=5), models.load, "expected the name of a network"),
    "a state that is a list": (lambda path: says(path, state=[1]), models.load, "a state of dense tensors by name"),
    "a sparse state": (
        lambda path: says(path, state={"weight": torch.eye(3).to_sparse()}),
        models.load,
        "expected a state of dense tensors by name",
    ),
    "an rqz of width 400": (lambda path: rqz(path, ["<f4"], width=400.0), packed.load, TAKE),
    "an rqz with a long header": (
        lambda path: rqz(path, ["x" * 20_000_000, "y"]),
        packed.load,
        "not a whole compressed network",
    ),
    "an rqz of another kind": (lambda path: rqz(path, ["<f4", "much"]), packed.load, "as pruning.pack wr"),
    "an rqz of a tensor like a later one": (lambda path: rqz(path, [5]), packed.load, "as pruning.pack writes them"),
    "an rqz of other tensors": (
        lambda path: rqz(path, ["<f4"], model="CNN_small"),
        packed.load,
        "other names or shapes in this version of rqlib; pack it again",
    ),
    "a generator": (large_generator, generator.load, TAKE),
}


@pytest.mark.parametrize("name", FILES)
def test_networks(tmp_path, name):
    write, read, words = FILES[name]
    path = write(tmp_path / "theirs")
    assert path.stat().st_size < 30_000_000
    with pytest.raises(ValueError, match=f"theirs.*{words}"):
        read(path)


@pytest.mark.parametrize("read", [files.load_tensors, models.load, models.weights.read, packed.load])
def test_a_pipe_is_not_read(tmp_path, read):
    os.mkfifo(tmp_path / "theirs")
    with pytest.raises(FileNotFoundError, match="theirs, found no file"):
        read(tmp_path / "theirs")
