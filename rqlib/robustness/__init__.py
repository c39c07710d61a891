"""Can a figure of robustness be believed?"""

from rqlib.certification import ladder_if_known
from rqlib.robustness.curves import against_epsilon, geometries
from rqlib.robustness.defense_study import VARIANTS, Trained, histories, one_seed, study
from rqlib.robustness.diagnostics import CHECKS, STATUSES, diagnose
from rqlib.robustness.plane import decision_slice, loss_surface
from rqlib.robustness.quantized_networks import on_sets, quantized
from rqlib.robustness.random_networks import eot_samples
from rqlib.robustness.seeing import convolution_outputs
from rqlib.robustness.stretching import guaranteed, norms_of_layers, stretched
from rqlib.robustness.study_claims import claims, families, hidden_by_noise, leak
from rqlib.robustness.transferring import transfer
from rqlib.robustness.withstanding import battery

__all__ = [
    "CHECKS",
    "STATUSES",
    "VARIANTS",
    "Trained",
    "against_epsilon",
    "battery",
    "claims",
    "convolution_outputs",
    "decision_slice",
    "diagnose",
    "eot_samples",
    "families",
    "geometries",
    "guaranteed",
    "hidden_by_noise",
    "histories",
    "ladder_if_known",
    "leak",
    "loss_surface",
    "norms_of_layers",
    "on_sets",
    "one_seed",
    "quantized",
    "stretched",
    "study",
    "transfer",
]
