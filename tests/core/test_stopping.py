"""A computation that is asked to stop does so when its state is kept, and not before."""

import os
import signal

import pytest

from rqlib.core import stopping
from rqlib.core.resumable import Resumable


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    yield
    stopping.listen()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_it_stops_after_the_state_is_kept(tmp_path, number):
    stopping.listen()
    state = Resumable(tmp_path / "state.pt", {}, kind="training")
    state.save(epoch=1)
    os.kill(os.getpid(), number)
    Resumable(None, {}, kind="training").save(epoch=2)  # keeps nothing, so that here it would lose something
    with pytest.raises(stopping.StoppedError, match="stopped as asked by a signal, the state is kept"):
        state.save(epoch=2)
    assert state.load() == {"epoch": 2}


def test_a_request_is_answered_once_also_by_who_listens_later():
    stopping.listen()
    os.kill(os.getpid(), signal.SIGUSR1)
    stopping.listen()
    with pytest.raises(stopping.StoppedError):
        stopping.stop_if_asked()
    stopping.stop_if_asked()
