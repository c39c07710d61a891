"""Side by side with other libraries: the same work, the same run, alternating; ratios of medians."""

import statistics
import time
from collections.abc import Callable


def alternate(ours: Callable[[], object], peer: Callable[[], object], *, repeats: int = 5) -> tuple[float, float]:
    """Median seconds of both, called in turn ``repeats`` times after one warm-up each."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 1):
        for call, taken in zip((ours, peer), seconds, strict=True):
            started = time.perf_counter()
            call()
            if repeat:
                taken.append(time.perf_counter() - started)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def row(
    work: str, peer: str, ours: Callable, theirs: Callable, *, at_least: float, agree: str, repeats: int = 5
) -> dict:
    """One line of the table: ``ratio`` is the peer's time over ours."""
    seconds, peer_seconds = alternate(ours, theirs, repeats=repeats)
    return {
        "work": work,
        "peer": peer,
        "seconds": seconds,
        "peer_seconds": peer_seconds,
        "ratio": peer_seconds / seconds,
        "at_least": at_least,
        "agree": agree,
    }
