"""Curvature of a Keras model's loss: Hessian and Gauss-Newton matrices as functions, and estimates from their products.

TensorFlow only. Every estimator accepts any symmetric matrix: an operator of a model, a NumPy array, a scipy matrix.
"""

from tfopt._checks import check_keras_3

check_keras_3()

from tfopt.curvature.certificate import convexity_certificate  # noqa: E402
from tfopt.curvature.covered_networks import NotCoveredError  # noqa: E402
from tfopt.curvature.density import SpectralDensity, spectral_density  # noqa: E402
from tfopt.curvature.estimate import Estimate  # noqa: E402
from tfopt.curvature.gauss_newton import GaussNewtonOperator  # noqa: E402
from tfopt.curvature.gradient_noise import GradientNoise, gradient_noise, simple_noise_scale  # noqa: E402
from tfopt.curvature.hessian import HessianOperator  # noqa: E402
from tfopt.curvature.lanczos import ExtremalEigenvalues, Tridiagonal, extremal_eigenvalues, lanczos  # noqa: E402
from tfopt.curvature.linear_map import curvature_along  # noqa: E402
from tfopt.curvature.modulus import ConvexityCertificate, convexity_modulus  # noqa: E402
from tfopt.curvature.objective import Objective  # noqa: E402
from tfopt.curvature.probe import Probe  # noqa: E402
from tfopt.curvature.trace import trace  # noqa: E402

__all__ = [
    "ConvexityCertificate",
    "Estimate",
    "ExtremalEigenvalues",
    "GaussNewtonOperator",
    "GradientNoise",
    "HessianOperator",
    "NotCoveredError",
    "Objective",
    "Probe",
    "SpectralDensity",
    "Tridiagonal",
    "convexity_certificate",
    "convexity_modulus",
    "curvature_along",
    "extremal_eigenvalues",
    "gradient_noise",
    "lanczos",
    "simple_noise_scale",
    "spectral_density",
    "trace",
]
