"""One flipped bit anywhere in a file that is read back, and the file is refused by its name; nothing is computed."""

import functools
import re
import shutil
from pathlib import Path

import numpy
import pandas
import pytest
import torch

from rqlib import data, generator, measures, models, prediction, training, workbook
from rqlib.core import files, seals
from rqlib.core.resumable import Resumable
from rqlib.pruning import packed
from rqlib.workbook import results
from tests.workbook.runs import start

COPIES = 63


@pytest.fixture(scope="module")
def images() -> data.ImageDataset:
    return data.load("digits").take(train=32, validation=16, test=16)


def network(images) -> torch.nn.Module:
    return models.build("SmallCNN", images.spec, seed=0)


def train(images, path: Path) -> None:
    """Train for one epoch, from the state in a file if it is there."""
    recipe = training.recipe("quick", epochs=1)
    training.fit(network(images), images, training.objective("natural"), recipe, checkpoint=path)


def evaluate(images, path: Path) -> None:
    measures.accuracy(network(images), *images.test, checkpoint=path)


def resume(path: Path) -> dict:
    return Resumable(path, {"seed": 0}, kind="sweep").load()


def finish(images, path: Path) -> None:
    """A finished run in the folder of the path."""
    run = start("01_train", model="SmallCNN", run_folder=str(path.parent))
    run.checkpoint(network(images), "SmallCNN", images.spec)
    run.save(history=pandas.DataFrame({"loss": [2.0, 1.0]}))
    run.record(accuracy=0.5)
    run.finish()


def history(images, path: Path) -> pandas.DataFrame:
    return workbook.network(path.with_name("checkpoint.pt"), images.spec)[1].history


def pack(images, path: Path) -> None:
    packed.save(path, network(images), "SmallCNN", images.spec)


def save_generator(images, path: Path) -> None:
    generator.save(path, generator.build(network(images), images.spec))


KINDS = {
    "checkpoint.pt": (finish, lambda images, path: workbook.network(path, images)),
    "run.json": (finish, lambda images, path: files.load_json(path)),
    "rows.parquet": (finish, lambda images, path: results.collect("01_train")),
    "history.parquet": (finish, history),
    "table.parquet": (
        lambda images, path: files.save_table(path, pandas.DataFrame({"model": "a", "format": "b", "accuracy": [1]})),
        lambda images, path: prediction.read_table(path),
    ),
    "training.pt": (train, train),
    "evaluation.pt": (evaluate, evaluate),
    "rows.pt": (
        lambda images, path: Resumable(path, {"seed": 0}, kind="sweep").save(rows=[{"accuracy": 0.5}]),
        lambda images, path: resume(path),
    ),
    "trained.pt": (save_generator, lambda images, path: generator.load(path)),
    "hydra.rqz": (pack, lambda images, path: packed.load(path)),
}
"""File -> (what writes it, what reads it)."""


def flipped(whole: bytes, bit: int) -> bytes:
    damaged = bytearray(whole)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def bits(first: int, last: int) -> list[int]:
    """`COPIES` bits of a file, evenly spread over the bytes from first to last, each at another place in its byte."""
    return [8 * int(byte) + number % 8 for number, byte in enumerate(numpy.linspace(first, last - 1, COPIES))]


@pytest.mark.filterwarnings("ignore::rqlib.workbook.chance.AtChanceWarning")  # random weights
@pytest.mark.parametrize("name", KINDS)
def test_each_of_63_damaged_copies_is_refused_by_name(images, outputs, name):
    path = outputs / "01_train" / "run" / name
    path.parent.mkdir(parents=True)
    write, read = KINDS[name]
    write(images, path)
    whole = path.read_bytes()
    read(images, path)
    assert name.endswith(".pt") is False or path.read_bytes() == whole, "reading changes nothing"
    for bit in bits(0, len(whole)):
        path.write_bytes(flipped(whole, bit))
        with pytest.raises(ValueError, match=rf"{re.escape(str(path))}(:| is damaged).*(again|remove)"):
            read(images, path)


def test_damage_to_every_bit_of_a_record_is_found(tmp_path):
    path = tmp_path / "run.json"
    files.save_json(path, {"status": "done"})
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        path.write_bytes(flipped(whole, bit))
        with pytest.raises(seals.DamagedError):
            seals.check(path)


def test_weights_of_other_programs_are_compared_with_the_checksums_of_their_parts(images, tmp_path):
    path = tmp_path / "theirs.pt"
    torch.save({"weight": torch.full((5000,), 0.1234)}, path)
    whole = path.read_bytes()
    first = whole.index(numpy.float32(0.1234).tobytes() * 4000)
    for bit in bits(first, first + 20_000):
        path.write_bytes(flipped(whole, bit))
        with pytest.raises(seals.DamagedError, match="theirs.pt: not a whole checkpoint of tensors.*download it again"):
            files.load_tensors(path)


WITHOUT_DIGEST = {
    "old.pt": (lambda path: torch.save({"count": 3}, path), files.load_tensors, {"count": 3}),
    "older.pt": (
        functools.partial(torch.save, {"count": 3}, _use_new_zipfile_serialization=False),
        files.load_tensors,
        {"count": 3},
    ),
    "run.json": (lambda path: path.write_text('{"status": "done"}'), files.load_json, {"status": "done"}),
    "rows.parquet": (
        lambda path: pandas.DataFrame({"accuracy": [0.5]}).to_parquet(path),
        lambda path: files.load_table(path).to_dict("list"),
        {"accuracy": [0.5]},
    ),
}


@pytest.mark.parametrize("name", WITHOUT_DIGEST)
def test_files_without_a_digest_are_still_read(tmp_path, name):
    write, read, expected = WITHOUT_DIGEST[name]
    write(tmp_path / name)
    assert read(tmp_path / name) == expected
    assert not seals.check(shutil.copy(tmp_path / name, tmp_path / "copy"))


def test_what_has_no_room_for_a_digest_is_not_changed(tmp_path):
    (tmp_path / "file").write_bytes(b"a" * 300)
    with pytest.raises(ValueError, match="expected room for a digest"):
        seals.seal(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"a" * 300
