"""Image sets in the formats in which they are published, tiny, read through torchvision."""

import functools
import gzip
import hashlib
import http.server
import pickle
import socket
import struct
import tarfile
import threading
from pathlib import Path

import numpy
import pytest
import scipy.io
import torch

from rqlib import data
from rqlib.core import torchvision_guard
from rqlib.data import sources

RANDOM = numpy.random.default_rng(0)
COARSE = [f"class {k}" for k in range(10)]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    known = socket.getaddrinfo

    def loopback_only(host, *arguments, **options):
        if host != "127.0.0.1":
            raise socket.gaierror(-2, "Name or service not known")
        return known(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", loopback_only)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_pickle(path: Path, content: dict) -> list[str]:
    """[name, md5], as torchvision lists a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return [path.name, md5(path)]


def write_cifar10(root: Path, monkeypatch) -> tuple[numpy.ndarray, list[int]]:
    """Five training batches of 8 images and 10 test images; returns the first batch."""
    kind, folder = torchvision_guard.torchvision().datasets.CIFAR10, root / "cifar-10-batches-py"
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    batches = {
        name: {
            "data": RANDOM.integers(0, 256, (count, 3072), dtype=numpy.uint8),
            "labels": RANDOM.integers(0, 10, count).tolist(),
        }
        for name, count in zip(names, [8] * 5 + [10], strict=True)
    }
    listed = [write_pickle(folder / name, content) for name, content in batches.items()]
    meta = write_pickle(folder / "batches.meta", {"label_names": COARSE})
    monkeypatch.setattr(kind, "train_list", listed[:5])
    monkeypatch.setattr(kind, "test_list", listed[5:])
    monkeypatch.setattr(kind, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
    return batches["data_batch_1"]["data"], batches["data_batch_1"]["labels"]


def test_cifar10(tmp_path, monkeypatch):
    first, labels = write_cifar10(tmp_path, monkeypatch)
    monkeypatch.setenv("RQLIB_DATA", str(tmp_path))
    dataset = data.load("cifar10")
    assert repr(dataset) == "CIFAR-10: 36 train, 4 validation, 10 test images of 3x32x32 in 10 classes"
    assert dataset.classes == tuple(COARSE)
    assert dataset.horizontal_flip
    (images, found), _, _ = sources.find("cifar10").read(tmp_path)
    assert torch.equal(images[:8], torch.from_numpy(first).view(8, 3, 32, 32))
    assert found[:8].tolist() == labels
    kind = torchvision_guard.torchvision().datasets.CIFAR10
    image, label = kind(tmp_path, train=False)[3]
    assert numpy.array_equal(dataset.test.images[3].permute(1, 2, 0), numpy.asarray(image))
    assert dataset.test.labels[3] == label
    with pytest.raises(ValueError, match="expected channels 3 as the images have, got 1"):
        data.load("cifar10", channels=1)


def test_svhn(tmp_path, monkeypatch):
    kind, images, files = torchvision_guard.torchvision().datasets.SVHN, {}, {}
    for part, count in (("train", 20), ("test", 10)):
        images[part] = RANDOM.integers(0, 256, (32, 32, 3, count), dtype=numpy.uint8)
        path = tmp_path / f"{part}_32x32.mat"
        labels = numpy.resize(numpy.arange(1, 11, dtype=numpy.uint8), (count, 1))  # a zero is labeled 10
        scipy.io.savemat(path, {"X": images[part], "y": labels})
        files[part] = ["", path.name, md5(path)]
    monkeypatch.setattr(kind, "split_list", files)
    dataset = data.load("svhn", tmp_path)
    assert repr(dataset) == "SVHN: 18 train, 2 validation, 10 test images of 3x32x32 in 10 classes"
    assert not dataset.horizontal_flip
    assert dataset.test.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    assert numpy.array_equal(dataset.test.images.permute(2, 3, 1, 0), images["test"])


def write_idx(path: Path, values: numpy.ndarray) -> None:
    """MNIST's format: two zeros, 8 for uint8, number of dimensions, sizes big-endian, bytes; gzip-compressed beside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}i", *values.shape)
    path.write_bytes(header + values.tobytes())
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))


def write_mnist(root: Path) -> numpy.ndarray:
    images = RANDOM.integers(0, 256, (20, 28, 28), dtype=numpy.uint8)
    for part in ("train", "t10k"):
        write_idx(root / "MNIST/raw" / f"{part}-images-idx3-ubyte", images)
        write_idx(root / "MNIST/raw" / f"{part}-labels-idx1-ubyte", numpy.arange(20, dtype=numpy.uint8) % 10)
    return images


def test_mnist_is_padded_to_32(tmp_path):
    images = write_mnist(tmp_path)
    dataset = data.load("mnist", tmp_path)
    assert repr(dataset) == "MNIST: 18 train, 2 validation, 20 test images of 1x32x32 in 10 classes"
    assert not dataset.horizontal_flip
    assert numpy.array_equal(dataset.test.images[:, 0, 2:-2, 2:-2], images)
    assert dataset.test.images.sum() == images.sum(dtype=int)
    assert dataset.test.labels.tolist() == 2 * list(range(10))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "mnist"])
def test_a_missing_set_is_one_error_with_the_command_that_fetches_it(name, tmp_path):
    root = tmp_path / "sets"
    with pytest.raises(FileNotFoundError) as caught:
        data.load(name, root)
    message = str(caught.value)
    assert name in message.lower()
    assert str(root) in message
    assert f"python -m rqlib.data {name} --root FOLDER" in message
    assert "Name or service not known" in message
    assert "\n" not in message
    assert caught.value.__suppress_context__
    assert not root.exists(), "nothing is left behind"


def test_a_damaged_file_is_not_read_and_not_deleted(tmp_path, monkeypatch):
    write_cifar10(tmp_path, monkeypatch)
    damaged = tmp_path / "cifar-10-batches-py/data_batch_3"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(FileNotFoundError, match="CIFAR10 is not whole in .*corrupted.*could not be downloaded"):
        data.load("cifar10", tmp_path)
    assert damaged.exists()
    assert not list(tmp_path.glob(".download-*"))


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Let torchvision's address of CIFAR-10 be a server of this machine."""
    kind = torchvision_guard.torchvision().datasets.CIFAR10
    write_cifar10(tmp_path / "server", monkeypatch)
    archive = tmp_path / "server" / kind.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "server/cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(kind, "tgz_md5", md5(archive))
    handler = functools.partial(Quiet, directory=tmp_path / "server")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        monkeypatch.setattr(kind, "url", f"http://127.0.0.1:{server.server_port}/{kind.filename}")
        yield kind
        server.shutdown()


def test_a_missing_or_damaged_set_is_downloaded_once(tmp_path, monkeypatch, published):
    timeout = socket.getdefaulttimeout()
    damaged = tmp_path / "sets/cifar-10-batches-py/test_batch"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"half")
    first = data.load("cifar10", tmp_path / "sets")
    monkeypatch.setattr(published, "url", "file:///nowhere")
    again = data.load("cifar10", tmp_path / "sets")
    assert torch.equal(first.train.images, again.train.images)
    assert not list((tmp_path / "sets").glob(".download-*"))
    assert socket.getdefaulttimeout() == timeout


def test_a_download_that_is_not_the_set_is_refused(tmp_path, monkeypatch, published):
    monkeypatch.setattr(published, "tgz_md5", "0" * 32)
    with pytest.raises(FileNotFoundError, match="could not be downloaded.*corrupted"):
        data.load("cifar10", tmp_path / "sets")
    assert not (tmp_path / "sets").exists()


def test_a_server_that_never_answers_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_PATIENCE_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/cifar-10-python.tar.gz"
        monkeypatch.setattr(torchvision_guard.torchvision().datasets.CIFAR10, "url", address)
        with pytest.raises(FileNotFoundError, match="could not be downloaded .*timed out"):
            data.load("cifar10", tmp_path)


def test_an_image_folder_is_found_from_anywhere(tmp_path, monkeypatch):
    for base in ("root", "project", "working", "elsewhere"):
        (tmp_path / base / base).mkdir(parents=True)
    (tmp_path / "working" / "root").mkdir()
    monkeypatch.chdir(tmp_path / "working")
    monkeypatch.setenv("RQLIB_ROOT", str(tmp_path / "project"))
    root = tmp_path / "root"
    for path in ("root", "project", "working", "../elsewhere/elsewhere", str(tmp_path / "elsewhere/elsewhere")):
        found = sources.find_folder(path, root)
        assert found == tmp_path / Path(path).name / Path(path).name
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sources.find_folder("~/elsewhere", root) == tmp_path / "elsewhere"


def test_a_missing_image_folder_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("RQLIB_ROOT", str(tmp_path / "project"))
    with pytest.raises(FileNotFoundError, match=f"none of: {tmp_path}/sets/mine.zip, {tmp_path}/project/mine.zip"):
        data.load("imagefolder:mine.zip", tmp_path / "sets")


def test_titles_of_image_folders():
    assert sources.find("imagefolder:sets/my.birds").title == "my.birds"
    assert sources.find("imagefolder:/sets/cifar10-jpeg.zip").title == "CIFAR-10 (JPEG)"
    assert sources.find("imagefolder:mnist10k.zip").title == "MNIST-10k"
    assert sources.find("imagefolder:my.birds").horizontal_flip
    assert not sources.find("imagefolder:mnist10k").horizontal_flip
