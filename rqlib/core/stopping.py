"""Stop a long computation when a scheduler asks for it, by a signal: as soon as its state is kept."""

import signal
import threading

SIGNALS = (signal.SIGUSR1, signal.SIGURG)
"""Both ask to stop. A process that does not listen is ended by USR1, and ignores URG."""

_asked = threading.Event()


class StoppedError(RuntimeError):
    """The computation was asked to stop, and its state is kept: run again, it goes on from there."""


def listen() -> None:
    """From now on a signal (`SIGNALS`) asks this process to stop. Outside the main thread nothing changes.

    A request that came before stays, unless it was answered (`stop_if_asked`).
    """
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, lambda *_: _asked.set())


def stop_if_asked() -> None:
    """Raise if the process was asked to stop; to be called where nothing would be lost.

    Raises:
        StoppedError: it was.
    """
    if _asked.is_set():
        _asked.clear()
        raise StoppedError("stopped as asked by a signal, the state is kept; run it again, and it goes on from there")
