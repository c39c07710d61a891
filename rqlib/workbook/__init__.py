"""Runs of notebooks: the network they open, their parameters and results, batch runs, reports.

The names are imported when they are first used, so that the program that starts a notebook does not load torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "chance": ["beside_chance"],
        "defended_runs": ["defended"],
        "opening": ["network", "others"],
        "recording": ["Run"],
        "results": ["collect", "find", "finished"],
        "seeds": ["with_other_seeds"],
    },
)
