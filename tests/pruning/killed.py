"""A process that is killed (kill -9) each time it has kept a state, until all is computed: `python killed.py FOLDER`.

It forks, so that torch is imported once. The results are written as FOLDER/results.pt.
"""

import functools
import itertools
import os
import signal
import sys
from pathlib import Path

import torch

from rqlib import attacks, certification, data, pruning
from rqlib.core import codebooks, files, resumable, runtime
from rqlib.pruning import constraints

RIVAL = "ATMC-8"


@functools.cache
def few_images() -> data.ImageDataset:
    """Enough for one batch per epoch, two groups of smoothing and two batches of a cascade."""
    return data.load("digits").take(train=64, validation=20, test=50)


def compute(folder: Path | None) -> dict:
    """A chain with every stage, a cascade and a smoothing; a folder keeps states."""
    runtime.use("cpu", "float32")
    codebooks.EXACT, constraints.EVERY = 100, 1
    images = few_images()
    plan = pruning.Plan(
        images,
        model="SmallCNN",
        ball=attacks.Linf(8 / 255),
        objectives={"prune": "adversarial", "finetune": "adversarial"},
        epochs={"pretrain": 1, "prune": 1, "finetune": 3},
        attack_steps=1,
        folder=folder,
    )
    network = pruning.joint(plan.fresh(), [RIVAL], [0.2], plan)[RIVAL, 0.2]
    found = dict(network.state_dict())
    keep = (lambda name: None) if folder is None else folder.joinpath
    test = images.test.take(20)
    options = {"epsilon": 0.002, "batch_size": 10, "asked": ["IBP"], "checkpoint": keep("cascade.pt")}
    table = certification.certify(network, *test, **options)
    found["cascade"] = table.drop(columns="seconds").to_csv()
    smoothed = certification.smooth(network, sigma=0.1)
    table = smoothed.certify(*images.test, draws=[20], checkpoint=keep("smoothing.pt"))
    found["smoothing"] = table.drop(columns="seconds").to_csv()
    return found


def until_killed(folder: Path) -> None:
    """Compute until a state has been kept, and die; the results are written if there was none to keep."""
    save = resumable.Resumable.save

    def save_and_die(self, **state):
        save(self, **state)
        if self.path is not None:
            os.kill(os.getpid(), signal.SIGKILL)

    resumable.Resumable.save = save_and_die
    files.save_tensors(folder / "results.pt", compute(folder))


if __name__ == "__main__":
    torch.set_num_threads(1)  # no threads that a fork would lose
    few_images()
    for attempt in itertools.count():
        child = os.fork()
        if not child:
            until_killed(Path(sys.argv[1]))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            print(f"killed {attempt} times")
            raise SystemExit(os.waitstatus_to_exitcode(status))
