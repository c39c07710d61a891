"""A pruned network as a file about as small as `measures.storage` says, from which the same network is loaded.

For each layer it holds the nonzero weights, as they are or by their numbers in a codebook, and an index of where they
are: a bitmap, or gaps in Rice's code (Rice and Plaunt 1971). Everything else is stored as it is, after a header of
compressed JSON. Names and shapes of the tensors are not in the file but in the network that the header names; a
checksum of them tells whether it still is the same. A tensor that two layers share is stored once. Loading never
executes anything from the file.
"""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy
import torch
from numpy import ndarray
from torch import Tensor, nn

from rqlib.core import files, layers, limits
from rqlib.core.vocabulary import ImageSpec
from rqlib.measures import cost
from rqlib.models import checkpoints

_MAGIC, _EARLIER = b"RQZ2", b"RQZ1"
_SIZES = struct.Struct("<II")  # bytes of the header, checksum of all that follows
_USUAL = (
    b'"width":1.0,"options":{},"classes":[],"parameters":{"seed":0},"changes":{"factorized":{"features.0.conv":null,'
    b'"classifier.linear1":null}},"metadata":{}},["<f4"],["<i8"],["<f4",-1,0],["<f4",1,0],'
    b'[{"model":"SmallCNN","spec":{"channels":3,"height":32,"width":32,"num_classes":10,"mean":[0.5],"std":[0.5]},'
)
"""A header takes only what differs from this text: zlib's preset dictionary (RFC 1950, section 2.2).

Files are read by the same text, so a change of it needs another `_MAGIC`.
"""
_TYPES = ("<f4", "<i8", "|b1", "|u1", "|i1", "<i4", "<f8", "<f2", "<i2")
_MOST_LOW_BITS = 24
_MOST_HEADER = 2**24  # bytes of JSON


def save(path: str | Path, model: nn.Module, name: str, spec: ImageSpec, **options) -> Path:
    """Write a plain network (`parametrizations.bake`) to a file, atomically; arguments and errors as `models.save`.

    A factorized one (`factors.factorized`) is stored as its factors, if ``changes`` say so.
    """
    content = checkpoints.content(model, name, spec, **options)
    state = dict(sorted(content.pop("state").items()))
    weights = {key for layer, _ in layers.weighted_layers(model) for key in state if _is_weight(key, layer)}
    same, place = _repeated(state), {key: number for number, key in enumerate(state)}
    weights |= {same[key] for key in weights if key in same}
    encoded = [
        ([place[same[key]]], b"") if key in same else (_sparse if key in weights else _raw)(value)
        for key, value in state.items()
    ]
    text = json.dumps([content, _layout(state), [how for how, _ in encoded]], separators=(",", ":"))
    packer = zlib.compressobj(9, zdict=_USUAL)
    header = packer.compress(text.encode()) + packer.flush()
    body = header + b"".join(stream for _, stream in encoded)
    with files.atomic(path) as part:
        part.write_bytes(_MAGIC + _SIZES.pack(len(header), zlib.crc32(body)) + body)
    return Path(path)


def load(path: str | Path, *, expected: str | None = None) -> tuple[nn.Module, dict]:
    """The network of a file and what else the file says of it; results and errors as `models.load`."""
    content, layout, how, stream = _opened(Path(path))
    checkpoints.check_keys(path, content, checkpoints.HEADER)
    checkpoints.check_name(path, content, expected)
    size = Path(path).stat().st_size

    def read(new: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the file holds in place of the state of a new network."""
        shapes = {key: value.shape for key, value in sorted(new.items())}
        if layout != _layout(new) or len(how) != len(new):
            raise ValueError("its tensors have other names or shapes in this version of rqlib; pack it again")
        try:
            needed = sum(map(_bytes_needed, shapes.values(), how))
            limits.check(path, needed, size, limits.MOST_UNPACKED, "its tensors")
            found: list[Tensor] = []
            for shape, one in zip(shapes.values(), how, strict=True):
                found.append(found[one[0]] if _is_place(one) else _decoded(stream, shape, *one))
        except (TypeError, KeyError, IndexError, OverflowError) as error:
            raise ValueError(f"expected tensors as pruning.pack writes them, got {error!r}") from error
        return dict(zip(shapes, found, strict=True))

    return checkpoints.rebuilt(path, content, read, limits.MOST_UNPACKED * size)


def _opened(path: Path) -> tuple[dict, int, list, io.BytesIO]:
    """What a file says of its network, of the names and shapes of its tensors and of each, and their stream."""
    if not path.is_file():
        raise FileNotFoundError(f"expected a compressed network at {path}, found no file")
    start, whole = len(_MAGIC) + _SIZES.size, path.read_bytes()
    size, checksum = _SIZES.unpack(whole[len(_MAGIC) : start]) if len(whole) > start else (0, None)
    header = zlib.decompressobj(zdict=_USUAL)
    if whole.startswith(_EARLIER):
        raise ValueError(f"{path}: a compressed network of an earlier version; write it again by pruning.pack")
    try:
        text = header.decompress(whole[start : start + size], _MOST_HEADER)
    except zlib.error:
        text = b""
    is_whole = whole.startswith(_MAGIC) and zlib.crc32(whole[start:]) == checksum
    if not is_whole or not header.eof or header.unused_data:
        raise ValueError(f"{path}: not a whole compressed network; write it by pruning.pack, or copy it again")
    try:
        content, layout, how = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: expected a header as pruning.pack writes it, got {error}") from error
    if not isinstance(content, dict) or not isinstance(how, list):
        raise ValueError(f"{path}: expected a header as pruning.pack writes it, got {type(content)} and {type(how)}")
    return content, layout, how, io.BytesIO(whole[start + size :])


def _layout(state: dict[str, Tensor]) -> int:
    """A checksum of the names and shapes of tensors."""
    return zlib.crc32(json.dumps([[name, list(value.shape)] for name, value in sorted(state.items())]).encode())


def _is_place(description: list) -> bool:
    """Whether it describes a tensor by the place of another one, which is the same."""
    return isinstance(description[0], int)


def _bytes_needed(shape: torch.Size, description: list) -> int:
    """Bytes of memory that a described tensor takes.

    Raises:
        ValueError: it has an unknown type, or more nonzero values or entries in its codebook than values.
    """
    if _is_place(description):
        return 0
    dtype, count, entries, low, *_ = [*description, *[0] * 4]
    if dtype not in _TYPES or not (-1 <= count <= shape.numel() and 0 <= entries <= shape.numel()):
        raise ValueError(f"expected a tensor of {shape.numel()} values as pruning.pack writes it, got {description}")
    if not 0 <= low < _MOST_LOW_BITS:
        raise ValueError(f"expected gaps of fewer than {_MOST_LOW_BITS} low bits, got {low}")
    return shape.numel() * numpy.dtype(dtype).itemsize


def _is_weight(key: str, layer: str) -> bool:
    """Whether a tensor is the weight of a layer, or one of the factors from which the weight is computed."""
    return key == f"{layer}.weight" or key.startswith(f"{layer}.parametrizations.weight.original")


def _repeated(state: dict[str, Tensor]) -> dict[str, str]:
    """Name of each tensor that is stored already under another name -> that name."""
    first: dict[tuple, str] = {}
    names = {
        name: first.setdefault((t.data_ptr(), t.shape, t.stride()), name) for name, t in state.items() if t.numel()
    }
    return {name: other for name, other in names.items() if name != other}


def _raw(tensor: Tensor) -> tuple[list, bytes]:
    """(description, bytes) of a tensor as it is; the description is its type."""
    values = tensor.contiguous().numpy()
    return [values.dtype.str], values.tobytes()


def _sparse(weight: Tensor) -> tuple[list, bytes]:
    """(description, bytes) of a weight: of all of its values, or of its nonzero values and an index.

    Described by type, number of nonzero values (-1: all are there), size of the codebook, and the index.
    """
    values = weight.contiguous().numpy().ravel()
    positions = values.nonzero()[0]
    index, where = _index(positions, values.size)
    entries, nonzero = _values(values[positions])
    all_entries, everything = _values(values)
    if len(where) + len(nonzero) < len(everything):
        return [values.dtype.str, len(positions), entries, *index], where + nonzero
    return [values.dtype.str, -1, all_entries], everything


def _decoded(stream: io.BytesIO, shape: torch.Size, dtype: str, count: int | None = None, entries: int = 0, *index):
    """Read the tensor that `_raw` or `_sparse` described and encoded."""
    size = shape.numel()
    if count is None or count < 0:
        return torch.from_numpy(_read_values(stream, size, dtype, entries).reshape(shape))
    weight, positions = numpy.zeros(size, dtype), _read_index(stream, count, size, *index)
    weight[positions] = _read_values(stream, count, dtype, entries)
    return torch.from_numpy(weight.reshape(shape))


def _values(values: ndarray) -> tuple[int, bytes]:
    """(size of the codebook, bytes): the codebook and a number in it for each value; or (0, the values as they are)."""
    codebook, codes = numpy.unique(values, return_inverse=True)
    if cost.with_codebook(len(values), len(codebook), len(codebook)) < 32 * len(values):
        return len(codebook), codebook.tobytes() + _bits(codes, cost.code_bits(len(codebook)))
    return 0, values.tobytes()


def _read_values(stream: io.BytesIO, count: int, dtype: str, entries: int) -> ndarray:
    stored = numpy.frombuffer(stream.read((entries or count) * numpy.dtype(dtype).itemsize), dtype)
    return stored[_numbers(stream, count, cost.code_bits(entries))] if entries else stored.copy()


def _index(positions: ndarray, size: int) -> tuple[list[int], bytes]:
    """(description, bytes) of positions: their gaps or those of all others, or a bitmap if these are no shorter.

    Gaps are described by their number of low bits, the length of their unary part, and 1 if they are those of all
    others; a bitmap by nothing.
    """
    others = numpy.delete(numpy.arange(size), positions)
    codes = [([*found, inverse], stream) for inverse, (found, stream) in enumerate(map(_gaps, (positions, others)))]
    shortest = min(codes, key=lambda code: len(code[1]))
    if 8 * len(shortest[1]) < size:
        return shortest
    bitmap = numpy.zeros(size, bool)
    bitmap[positions] = True
    return [], numpy.packbits(bitmap).tobytes()


def _gaps(positions: ndarray) -> tuple[list[int], bytes]:
    """(number of low bits, length of the unary part) and bytes of the gaps between positions in Rice's code."""
    gaps = numpy.diff(positions, prepend=-1) - 1
    lengths = [int((gaps >> low).sum()) + len(gaps) * (1 + low) for low in range(_MOST_LOW_BITS)]
    low = int(numpy.argmin(lengths))
    ends = numpy.cumsum((gaps >> low) + 1) - 1
    unary = numpy.zeros(int(ends[-1]) + 1 if len(ends) else 0, bool)
    unary[ends] = True
    return [low, len(unary)], numpy.packbits(unary).tobytes() + _bits(gaps & ((1 << low) - 1), low)


def _read_index(stream: io.BytesIO, count: int, size: int, low: int = 0, length: int = -1, inverse: int = 0) -> ndarray:
    ones = numpy.unpackbits(_bytes(stream, size if length < 0 else length)).nonzero()[0]
    if length < 0:
        return ones
    listed = size - count if inverse else count
    gaps = ((numpy.diff(ones, prepend=-1) - 1) << low) + _numbers(stream, listed, low)
    positions = numpy.cumsum(gaps + 1) - 1
    return numpy.delete(numpy.arange(size), positions) if inverse else positions


def _bits(numbers: ndarray, width: int) -> bytes:
    """Numbers as so many bits each."""
    return numpy.packbits((numbers.reshape(-1, 1) >> numpy.arange(width)) & 1).tobytes()


def _numbers(stream: io.BytesIO, count: int, width: int) -> ndarray:
    bits = numpy.unpackbits(_bytes(stream, count * width), count=count * width).reshape(count, width)
    return bits.astype(numpy.int64) @ (1 << numpy.arange(width))


def _bytes(stream: io.BytesIO, bits: int) -> ndarray:
    found = numpy.frombuffer(stream.read(-(-bits // 8)), numpy.uint8)
    if bits > 8 * len(found):
        raise ValueError(f"expected {bits} more bits of its tensors, got {8 * len(found)}")
    return found
