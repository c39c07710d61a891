"""Runs made in a test, without a notebook."""

from rqlib.workbook import recording


def start(notebook: str = "05_robust", **values) -> recording.Run:
    """A run of a notebook that has begun."""
    values = {"dataset": "digits", "model": "ResNet_18", "seed": 0, "epsilon_255": 8.0, "seeds": [0, 1]} | values
    types = {name: type(value) for name, value in values.items()} | {"seeds": list[int]}
    return recording.Run(notebook, {"__annotations__": types, **values})


def finish(notebook: str = "05_robust", accuracy: float = 0.5, **values) -> recording.Run:
    """A run that has finished with one row."""
    run = start(notebook, **values)
    run.record(accuracy=accuracy)
    run.finish(accuracy=accuracy)
    return run


def forget() -> None:
    """As if the kernel had died: its locks are gone, and what it knew."""
    for lock in recording._held.values():
        lock.release()
    recording._held.clear()
