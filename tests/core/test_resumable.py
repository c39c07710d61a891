"""A state is found again, whole, and only by the computation that it belongs to."""

import pytest
import torch

from rqlib.core.resumable import BelongsToAnotherError, Resumable, fingerprint
from rqlib.data.imagenet import ImageFiles

IDENTITY = {"seed": 0, "network": "a" * 64}
STATE = {
    "rows": {("layer", "INT_8"): {"accuracy": 0.1 + 0.2, "twin": None}},
    "weights": torch.linspace(0, 1, 7),
    "count": 3,
}


def resumable(path, **changes) -> Resumable:
    return Resumable(path, IDENTITY | changes, kind="sweep")


def test_a_state_survives_exactly(tmp_path):
    path = tmp_path / "folder" / "state.pt"
    assert resumable(path).load() == {}
    resumable(path).save(**STATE)
    found = resumable(path).load()
    assert torch.equal(found.pop("weights"), STATE["weights"])
    assert found == {name: STATE[name] for name in ("rows", "count")}
    resumable(path).save(count=4)
    assert resumable(path).load() == {"count": 4}
    assert [file.name for file in path.parent.iterdir()] == ["state.pt"]


def test_without_a_path_nothing_is_kept():
    kept = resumable(None)
    kept.save(**STATE)
    assert kept.load() == {}


def test_another_computations_state_is_refused_by_what_differs(tmp_path):
    resumable(tmp_path / "state.pt", seed=1, network="b" * 64).save(**STATE)
    message = r"state.pt belongs to another sweep: network b{12}... instead of a{12}..., seed 1 instead of 0; remove"
    with pytest.raises(BelongsToAnotherError, match=message):
        resumable(tmp_path / "state.pt").load()
    torch.save(STATE, tmp_path / "foreign.pt")
    with pytest.raises(BelongsToAnotherError, match="foreign.pt belongs to another sweep: it does not say of which"):
        resumable(tmp_path / "foreign.pt").load()


def test_fingerprints_tell_values_apart():
    state = {"weight": torch.ones(2), "bias": torch.zeros(1)}
    same = fingerprint(state, torch.arange(3), "minmax", ("js",))
    assert same == fingerprint({**state}, torch.arange(3), "minmax", ("js",))
    others = [
        fingerprint({**state, "bias": torch.full((1,), 1e-30)}, torch.arange(3), "minmax", ("js",)),
        fingerprint(state, torch.arange(3) + 1, "minmax", ("js",)),
        fingerprint(state, torch.arange(3), "mse", ("js",)),
        fingerprint(state, torch.arange(3), "minmax", ()),
    ]
    assert len({same, *others}) == 5


def test_images_in_files_are_told_apart_by_their_paths():
    one, again, other = (ImageFiles([path], None, (2, 2)) for path in ("a.png", "a.png", "b.png"))
    assert fingerprint(one) == fingerprint(again) != fingerprint(other)
