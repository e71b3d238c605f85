"""Where a network's loss is provably strongly convex (Milne, NeurIPS 2019, arXiv 1810.12805)."""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt._checks import as_numbers, check_choice, check_integer, check_number
from tfopt.communicator import Communicator
from tfopt.curvature.covered_networks import NotCoveredError, check_loss, common_l2, dense_layers
from tfopt.curvature.probe_loss import ProbeLoss, compiled

KINDS = ("paper", "sharp")


@dataclass(frozen=True)
class ConvexityCertificate:
    """What the strong-convexity theorem says at a network's weights W.

    The network has H hidden layers of (leaky) ReLUs, k linear outputs, Keras's loss "mse" and an L2 penalty l2 |W|^2.
    With c = H (H + 1) in the paper, and c = H in a sharper form of the same proof, the smallest eigenvalue of the
    Hessian is, on the piece on which the activation pattern does not change, at least

        theta = 2 l2 - 2 c r sqrt(mse / k) |W|_*^(H - 1).

    If theta is positive, the loss is strongly convex there: a critical point on that piece is an isolated local
    minimum. If it is not, nothing is said.

    Attributes:
        l2: Coefficient of the penalty l2 |W|^2; the paper's lambda is k l2.
        mean_squared_error: Keras's "mse" on the probe, without the penalty; the paper's l(W) is half of k times it.
        spectral_norm: |W|_*, the largest singular value among the weight matrices.
        input_radius: r, the largest norm of an input; sqrt(r^2 + 1) where there are biases.
        num_hidden_layers: H.
        num_outputs: k.
    """

    l2: float
    mean_squared_error: float
    spectral_norm: float
    input_radius: float
    num_hidden_layers: int
    num_outputs: int

    @property
    def theta_paper(self) -> float:
        """The modulus that the paper's theorem certifies; of the loss that Keras minimises."""
        return self.modulus("paper")

    @property
    def theta_sharp(self) -> float:
        """The modulus by the sharper form; never below `theta_paper`."""
        return self.modulus("sharp")

    def modulus(self, kind: str = "sharp", norm_bound: float | None = None) -> float:
        """Return theta.

        Args:
            kind: "paper" or "sharp".
            norm_bound: A bound R of the spectral norms, at least `spectral_norm`. Then theta holds for all weights with
                |W|_* <= R and no larger mean squared error. None (default) means `spectral_norm`.

        Returns:
            A lower bound of the Hessian's eigenvalues, positive or not, in units of the loss that Keras minimises.

        Raises:
            ValueError: An argument is out of its range.
        """
        return float(
            convexity_modulus(
                self.l2,
                self.mean_squared_error,
                self._norm(norm_bound),
                self.input_radius,
                self.num_hidden_layers,
                self.num_outputs,
                kind,
            )
        )

    def contains(self, theta: float = 0.0, kind: str = "sharp", norm_bound: float | None = None) -> bool:
        """Return whether the weights are in U(lambda, theta), where the modulus is more than theta.

        Args:
            theta: In units of the loss that Keras minimises; 2 / k times the paper's. Default 0.
            kind: "paper" or "sharp".
            norm_bound: As `modulus` takes it.

        Returns:
            Whether they are.

        Raises:
            ValueError: An argument is out of its range.
        """
        return self.modulus(kind, norm_bound) > check_number("theta", theta)

    def largest_mean_squared_error(
        self, theta: float = 0.0, kind: str = "sharp", norm_bound: float | None = None
    ) -> float:
        """Return below which mean squared error weights are in U(lambda, theta), at these norms.

        Args:
            theta: In units of the loss that Keras minimises, at most 2 l2. Default 0.
            kind: "paper" or "sharp".
            norm_bound: As `modulus` takes it; the result then holds in the whole ball |W|_* <= R.

        Returns:
            The mean squared error; infinite without hidden layers.

        Raises:
            ValueError: An argument is out of its range.
        """
        check_number("theta", theta, maximum=2.0 * self.l2)
        sizes = (self.input_radius, self.num_hidden_layers, self.num_outputs)
        unit = -float(convexity_modulus(0.0, 1.0, self._norm(norm_bound), *sizes, kind))
        if unit == 0.0:
            return float("inf")
        root = (2.0 * self.l2 - theta) / unit
        return root * root

    def _norm(self, norm_bound: float | None) -> float:
        if norm_bound is None:
            return self.spectral_norm
        return check_number("norm_bound", norm_bound, minimum=self.spectral_norm)

    def __repr__(self) -> str:
        return (
            f"ConvexityCertificate(theta_paper={self.theta_paper:.4g}, theta_sharp={self.theta_sharp:.4g}, "
            f"l2={self.l2:g}, mean_squared_error={self.mean_squared_error:.4g}, "
            f"spectral_norm={self.spectral_norm:.4g}, input_radius={self.input_radius:.4g}, "
            f"num_hidden_layers={self.num_hidden_layers}, num_outputs={self.num_outputs})"
        )


def convexity_modulus(
    l2: Any,
    mean_squared_error: Any,
    spectral_norm: Any,
    input_radius: Any,
    num_hidden_layers: int,
    num_outputs: int = 1,
    kind: str = "sharp",
) -> np.ndarray:
    """Return the certified modulus theta = 2 l2 - 2 c r sqrt(mse / k) |W|_*^(H - 1) from numbers or arrays of them.

    Args:
        l2: Coefficient of the penalty l2 |W|^2.
        mean_squared_error: Keras's "mse", a mean over rows and outputs.
        spectral_norm: |W|_*, the largest singular value among the weight matrices.
        input_radius: r, the largest norm of an input.
        num_hidden_layers: H, an integer >= 0.
        num_outputs: k, an integer >= 1.
        kind: "paper" (c = H (H + 1)) or "sharp" (c = H).

    Returns:
        Moduli, of the shape that the arrays have together; minus infinity where a power overflows.

    Raises:
        TypeError: A number is no integer.
        ValueError: An argument is out of its range.

    Example:
        >>> float(convexity_modulus(1.0, 0.25, 3.0, 1.0, num_hidden_layers=1, kind="paper"))
        0.0
    """
    depth = check_integer("num_hidden_layers", num_hidden_layers, minimum=0)
    check_integer("num_outputs", num_outputs, minimum=1)
    check_choice("kind", kind, KINDS)
    factor = depth * (depth + 1) if kind == "paper" else depth
    given = {"l2": l2, "mean_squared_error": mean_squared_error, "spectral_norm": spectral_norm}
    given |= {"input_radius": input_radius}
    numbers = {name: as_numbers(name, value, "numbers >= 0") for name, value in given.items()}
    for name, values in numbers.items():
        if (values < 0).any():
            raise ValueError(f"`{name}` must hold numbers >= 0. Received: {name}={given[name]!r}")
    decay, squares, norm, radius = numbers.values()
    decay = 2.0 * decay
    if factor == 0:
        return np.array(np.broadcast_to(decay, np.broadcast_shapes(*(part.shape for part in numbers.values()))))
    with np.errstate(over="ignore", invalid="ignore"):
        size = np.sqrt(squares / num_outputs) * radius
        theta = decay - 2.0 * factor * size * norm ** (depth - 1)
    return np.where(np.isnan(theta), -np.inf, theta)


def convexity_certificate(
    model: keras.Model,
    loss: Any = None,
    x: Any = None,
    y: Any = None,
    *,
    batch_size: int | None = None,
    communicator: Communicator | None = None,
) -> ConvexityCertificate:
    """Return what the strong-convexity theorem says of a network on data.

    It covers chains of Dense layers without biases, with linear, ReLU or leaky ReLU activations of slopes up to 1, a
    linear output, the loss "mse", and the same L2 penalty on every kernel. With at most one hidden layer there may be
    biases, if the same penalty is on them. An optimizer's `weight_decay` is no part of the loss, and does not count.

    Args:
        model: A Keras model with its variables, compiled or not.
        loss: "mse" in any of its forms. None (default) means the one that the model was compiled with.
        x: The data: a `tfopt.curvature.Probe`, or what `Probe` takes as its `x`.
        y: As `Probe` takes it.
        batch_size: As `Probe` takes it.
        communicator: The job's communicator; None (default) means `tfopt.communicator.current()`. The data are those of
            all ranks.

    Returns:
        The certificate; `theta_paper` and `theta_sharp` are positive where the loss is certified to be convex.

    Raises:
        TypeError: An argument has the wrong type.
        NotCoveredError: The theorem does not cover the model, its loss or its data; the message says why. A ValueError.
        ValueError: An argument is out of its range.

    Example:
        >>> from tfopt.models import milne_regression
        >>> model = milne_regression(seed=0)
        >>> _ = model.set_weights([np.array([[0.5, 0.25]]), np.array([[0.5], [0.5]])])
        >>> certificate = convexity_certificate(model, "mse", np.array([[1.0]]), np.array([[0.0]]))
        >>> certificate.mean_squared_error, certificate.theta_paper, certificate.theta_sharp
        (0.140625, 0.5, 1.25)
    """
    probe_loss = ProbeLoss.of(model, loss, x, y, batch_size=batch_size, communicator=communicator)
    return CertifiedNetwork(probe_loss).certificate()


class CertifiedNetwork:
    """A network that the theorem covers, with its data: makes a certificate at the weights of the moment.

    Args:
        probe_loss: The loss and its data.

    Raises:
        NotCoveredError: The theorem does not cover the model, its loss or its data.
    """

    def __init__(self, probe_loss: ProbeLoss) -> None:
        self._loss = probe_loss
        radius = self._read()
        objective = probe_loss.objective
        self._error_of = compiled(
            lambda values, batch: objective.loss_of_outputs(
                objective.outputs(values, batch[0], probe_loss.variables), batch
            )
        )
        # A bias is the weight of an input that is always 1.
        self._radius = float(np.hypot(radius, 1.0)) if any(layer.use_bias for layer in self._layers) else radius

    def _read(self) -> float:
        # The largest norm of an input. What one rank's part of it does not let be covered is refused on all.
        why, radius = "", 0.0
        try:
            self._layers = dense_layers(self._loss.objective.model)
            check_loss(self._loss)
            self._l2 = common_l2(self._layers)
            radius = max(_radius(batch.x) for batch in self._loss.probe.batches)
        except NotCoveredError as error:
            why = error.why
        found = self._loss.communicator.allgather_object((why, radius), "what the certificate covers")
        refused = next((why for why, _ in found if why), None)
        if refused:
            raise NotCoveredError(refused)
        return max(radius for _, radius in found)

    def certificate(self) -> ConvexityCertificate:
        """Return the certificate at the model's weights.

        Returns:
            The certificate, over the rows of all ranks.

        Raises:
            ValueError: A weight is not finite.
        """
        values, rows = self._loss.values(), self._loss.num_rows
        batches = self._loss.probe.batches
        error = sum(batch.num_rows / rows * float(self._error_of(values, batch.tensors)) for batch in batches)
        (error,) = self._loss.communicator.allreduce_sum([tf.constant(error, tf.float64)], name="error")
        # The singular values themselves, raised by what rounding may have taken off: a bound must not be too small.
        kernels = [np.asarray(layer.kernel.value, np.float64) for layer in self._layers]
        if not all(np.isfinite(kernel).all() for kernel in kernels):
            raise ValueError("`model` must have finite weights. Received: weights that are NaN or infinite")
        spectral_norm = max(np.linalg.norm(kernel, 2) * (1 + 1e-12 * max(kernel.shape)) for kernel in kernels)
        return ConvexityCertificate(
            l2=self._l2,
            mean_squared_error=float(error),
            spectral_norm=float(spectral_norm),
            input_radius=self._radius,
            num_hidden_layers=len(self._layers) - 1,
            num_outputs=int(self._layers[-1].units),
        )


def _radius(x: Any) -> float:
    leaves = keras.tree.flatten(x)
    if len(leaves) != 1:
        raise NotCoveredError(f"the data have {len(leaves)} inputs")
    rows = np.asarray(leaves[0], np.float64)
    return float(np.linalg.norm(rows.reshape(len(rows), -1), axis=1).max())
