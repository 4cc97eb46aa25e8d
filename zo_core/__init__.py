"""The zeroth-order engine: noise, directions, estimators, updates, methods. Needs torch alone."""

from zo_core.base import (
    Closure,
    Cost,
    Distribution,
    Estimator,
    GradientEstimate,
    Method,
    NonFiniteLoss,
    Objective,
    Params,
    Perturber,
    StepInfo,
    Term,
    UpdateRule,
    derive_seed,
)
from zo_core.noise.reference import sample
from zo_core.optim import ZOOptimizer
from zo_core.trajectory import Trajectory

__all__ = [
    "Closure",
    "Cost",
    "Distribution",
    "Estimator",
    "GradientEstimate",
    "Method",
    "NonFiniteLoss",
    "Objective",
    "Params",
    "Perturber",
    "StepInfo",
    "Term",
    "Trajectory",
    "UpdateRule",
    "ZOOptimizer",
    "derive_seed",
    "sample",
]
