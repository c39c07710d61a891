"""The user's own images: a folder, or a .zip of it, with ``train/CLASS/*`` and ``test/CLASS/*``.

The decoded images are kept in one checked file in the folder ``RQLIB_CACHE`` (else ``~/.cache/rqlib``), and read from
there until the user's files change: decoding thousands of small files takes a while.
"""

import contextlib
import hashlib
import io
import math
import os
import re
import stat
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
import PIL
import torch
from PIL import Image
from torch import Tensor

from rqlib.core import files, limits, runtime
from rqlib.data import decoding

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
_PARTS = ("train", "test")
_VERSION = f"2, Pillow {PIL.__version__}"  # of the kept file: images kept by another version are decoded again


def read(path: Path) -> tuple:
    """(train, test, classes): two pairs of images uint8 (N, C, H, W) and labels int64 (N,), and sorted class names.

    The images are in a random order that never changes. They have one channel if every image is gray, else three.
    They are turned as their EXIF data say; transparent pixels are put on white, which one warning says.

    Raises:
        ValueError: a file or folder is faulty; the message says which one and how.
    """
    source, cache = _digest(path), cache_file(path)
    content = _kept(cache, source)
    if content is None:
        content = _decoded(path)
        _keep(cache, source, content)
    if content["transparent"]:
        warnings.warn(f"{path}: {content['transparent']:,} images {decoding.TRANSPARENT}", stacklevel=2)
    train, test = ((content[f"{part}_images"], content[f"{part}_labels"]) for part in _PARTS)
    return train, test, tuple(content["classes"])


def cache_file(path: Path) -> Path:
    """The file in which the decoded images of a folder or .zip are kept."""
    folder = os.environ.get("RQLIB_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "rqlib")
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:12]
    return Path(folder).expanduser() / f"{path.stem}-{name}.pt"


def _digest(path: Path) -> str:
    """A text that changes with the images: made of a .zip's bytes, or of names, sizes and times of a folder's files."""
    if path.is_file():
        return files.sha256(path)
    if not path.is_dir():
        raise ValueError(f"expected a folder or .zip of images, got {path}, which is neither")
    entries = [(name, _stat(path, name)) for name in _names(path) if not name.endswith("/")]
    lines = [f"{name}\0{found.st_size}\0{found.st_mtime_ns}\n" for name, found in entries]
    return hashlib.sha256(os.fsencode("".join(lines))).hexdigest()


def _stat(path: Path, name: str) -> os.stat_result:
    """Size and time of a file; an image must be a regular one, because a pipe or a device has no end."""
    try:
        found = (path / name).stat()
    except OSError as error:
        raise ValueError(f"{path}: cannot read {name} ({error.strerror}); remove it") from error
    if name.lower().endswith(SUFFIXES) and not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path}: expected images in regular files, got {name}, a pipe or a device; remove it")
    return found


def _kept(cache: Path, source: str) -> dict | None:
    """The kept tensors; None if there are none, if they are damaged, or if they are of other images."""
    try:
        content = files.load_tensors(cache)
        checksum = content.pop("checksum")
        return content if checksum == _checksum(source, content) else None
    except Exception:  # whatever is wrong with the file: the images are decoded again
        return None


def _keep(cache: Path, source: str, content: dict) -> None:
    try:
        files.save_tensors(cache, {**content, "checksum": _checksum(source, content)})
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        warnings.warn(
            f"cannot keep the decoded images in {cache} ({error}); every run will read them again from their files. "
            "Name a folder that can be written in RQLIB_CACHE",
            stacklevel=2,
        )


def _checksum(source: str, content: dict) -> str:
    digest = hashlib.sha256(f"{_VERSION}\n{source}\n{content['classes']}\n{content['transparent']}\n".encode())
    for part in _PARTS:
        images, labels = content[f"{part}_images"], content[f"{part}_labels"]
        digest.update(f"{tuple(images.shape)}\n".encode())
        digest.update(images.permute(0, 2, 3, 1).contiguous().numpy())
        digest.update(labels.numpy())
    return digest.hexdigest()


def _decoded(path: Path) -> dict:
    """Decode every image: the content of the kept file, without its checksum."""
    with _opened(path) as (names, read_bytes, size):
        members = _members(path, names)
        classes = sorted(members["train"])
        listed = {part: _shuffled(members[part], classes) for part in _PARTS}
        every = [name for part in _PARTS for name, _ in listed[part]]
        found = _pictures(path, every, read_bytes, size)
    arrays = {name: array for name, (array, _) in found.items()}
    gray = all(array.ndim == 2 for array in arrays.values())
    content: dict = {"classes": classes, "transparent": sum(transparent for _, transparent in found.values())}
    for part in _PARTS:
        names, labels = zip(*listed[part], strict=True)
        content[f"{part}_images"] = _stacked([arrays[name] for name in names], gray)
        content[f"{part}_labels"] = torch.tensor(labels)
    return content


def _shuffled(members: dict[str, list[str]], classes: list[str]) -> list[tuple[str, int]]:
    """(name, label) of every image, in a random order that never changes."""
    pairs = [(name, label) for label, kind in enumerate(classes) for name in members.get(kind, ())]
    return [pairs[i] for i in torch.randperm(len(pairs), generator=runtime.rng(0)).tolist()]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[list[str], Callable[[str], bytes], int]]:
    """Names of all files and folders in a folder or .zip, a function that reads a file, and the size of all in bytes.

    Names of folders end in "/".
    """
    if path.is_dir():
        names = _names(path)
        size = sum(_stat(path, name).st_size for name in names if not name.endswith("/"))
        yield names, lambda name: (path / name).read_bytes(), size
        return
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"expected a folder or .zip of images, got {path}, which is no whole .zip ({error})"
        ) from error
    with archive:
        size, inflated = path.stat().st_size, sum(member.file_size for member in archive.infolist())
        limits.check(path, inflated, size, limits.MOST_INFLATED, "its files, unpacked,")
        yield archive.namelist(), lambda name: _inflated(archive, name), size


def _inflated(archive: zipfile.ZipFile, name: str) -> bytes:
    """The bytes of a member, never more than the archive says of it."""
    with archive.open(name) as member:
        return member.read(archive.getinfo(name).file_size)


def _names(folder: Path) -> list[str]:
    """Sorted relative names of all files and folders under a folder; names of folders end in "/"."""
    return sorted(_below(folder, "", ()))


def _below(folder: Path, inside: str, above: tuple[str, ...]) -> Iterator[str]:
    """The names under ``folder / inside``; ``above`` are the real paths of the folders that lead there."""
    real = os.path.realpath(folder / inside)
    if real in above:
        raise ValueError(f"{folder}: {inside} is a link that leads back to {real}, which holds it; remove the link")
    with os.scandir(folder / inside) as found:
        entries = list(found)
    for entry in entries:
        name = f"{inside}{entry.name}"
        if os.path.isdir(entry):
            yield f"{name}/"
            yield from _below(folder, f"{name}/", (*above, real))
        else:
            yield name


def _members(path: Path, names: list[str]) -> dict[str, dict[str, list[str]]]:
    """part -> class -> names of its images. Hidden files are left out, and every class must have images."""
    members: dict[str, dict[str, list[str]]] = {part: {} for part in _PARTS}
    visible = [name for name in sorted(names) if not re.search(r"(^|/)(\.|__MACOSX/)", name)]
    tops = {name.partition("/")[0] for name in visible}
    # A .zip may hold the folder itself, and not its content.
    wrapper = f"{tops.pop()}/" if len(tops) == 1 and not tops & members.keys() else ""
    for name in visible:
        part, *inner = name.removeprefix(wrapper).split("/")
        if part in members and len(inner) > 1:
            images = members[part].setdefault(inner[0], [])
            if name.lower().endswith(SUFFIXES):
                images.append(name)
    _check_members(path, members)
    return members


def _check_members(path: Path, members: dict[str, dict[str, list[str]]]) -> None:
    for part, classes in members.items():
        if not classes:
            raise ValueError(f"{path}: expected images in train/CLASS/* and test/CLASS/*, found no {part}/CLASS/")
        empty = [kind for kind, images in classes.items() if not images]
        if empty:
            raise ValueError(f"{path}: no image in {part}/{empty[0]}/ ({' '.join(SUFFIXES)}); fill or remove it")
    if len(members["train"]) == 1:
        raise ValueError(
            f"{path}: expected at least two classes in train/, got one ({next(iter(members['train']))}); "
            "add images of what it is to be told from, in a folder of their own"
        )
    strange = sorted(members["test"].keys() - members["train"].keys())
    if strange:
        raise ValueError(f"{path}: test/ has classes that train/ lacks: {', '.join(strange)}; a class needs both")


def _pictures(path: Path, names: list[str], read_bytes: Callable[[str], bytes], size: int) -> dict:
    """name -> (pixels, whether some were transparent) of every image; all must have the size of the first one."""
    found = {}
    for name in runtime.progress(names, f"reading {path.name}"):
        found[name] = _pixels(path, name, read_bytes)
        expected, got = (found[one][0].shape[:2] for one in (names[0], name))
        if got != expected:
            raise ValueError(
                f"{path}: expected all images of one size, {expected[1]}x{expected[0]} as {names[0]}, got "
                f"{got[1]}x{got[0]} in {name}; resize the images first"
            )
        if len(found) == 1:
            limits.check(path, len(names) * 3 * math.prod(got), size, limits.MOST_DECODED, "its pixels")
    return found


def _pixels(path: Path, name: str, read_bytes: Callable[[str], bytes]) -> tuple[numpy.ndarray, bool]:
    """One image, uint8, (H, W) if it is gray, else (H, W, 3); and whether it had transparent pixels."""
    try:
        with Image.open(io.BytesIO(read_bytes(name))) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"expected 8 bits per channel, got mode {image.mode}")
            picture, transparent = decoding.seen(image)
            return numpy.asarray(picture), transparent
    except Exception as error:
        raise ValueError(f"cannot read image {name} in {path} ({error}); repair or remove it") from error


def _stacked(arrays: list[numpy.ndarray], gray: bool) -> Tensor:
    """uint8 (N, C, H, W) in channels_last memory; gray images among colored ones are repeated to three channels."""
    channels = 1 if gray else 3
    alike = [numpy.repeat(array[..., None], channels, 2) if array.ndim == 2 else array for array in arrays]
    return torch.from_numpy(numpy.stack(alike)).permute(0, 3, 1, 2)
