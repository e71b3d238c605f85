"""Whether the loss is convex along training."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tfopt import _plotting
from tfopt._checks import check_flag, check_integer, check_label
from tfopt._variables import flatten
from tfopt.callbacks import _time_share
from tfopt.callbacks._cadence import Cadence
from tfopt.callbacks._change_share import ChangeShare
from tfopt.callbacks._running_fit import act_after_batch_begin, batch_size_of, find_running_fit
from tfopt.callbacks._spectrum_share import SpectrumShare
from tfopt.callbacks._stability import PRODUCT, optimizer_with_limit, product_of, stability_of
from tfopt.callbacks.measurement import Measurement
from tfopt.curvature import (
    HessianOperator,
    NotCoveredError,
    SpectralDensity,
    curvature_along,
    extremal_eigenvalues,
    spectral_density,
    trace,
)
from tfopt.curvature.certificate import CertifiedNetwork
from tfopt.curvature.row_means import depends_on_batch_size

if TYPE_CHECKING:
    import matplotlib.axes

_GRADIENT = "curvature_along_gradient"
# Quantity -> the name in the logs of the share of the loss change that began while it was positive.
_SHARES = {_GRADIENT: "along_gradient", "theta_paper": "certified_paper", "theta_sharp": "certified_sharp"}


class _Instruments(NamedTuple):
    hessian: HessianOperator
    network: CertifiedNetwork | None  # None without a certificate.


class Convexity(Measurement):
    """Record the curvature of the loss along training: along the gradient, its signed extremes, and certified bounds.

    All values belong to a fixed probe, and to the loss with its regularisation. If the loss is a sum over rows, they
    belong to the probe's batches, and not to those of `fit`. The callback measures before the first step, at the end of
    every n-th epoch (or after every n-th step), and at the end of training. In the logs, from the first epoch on:

    - `convexity/loss`, and `convexity/curvature_along_gradient`: g'Hg / g'g.
    - `hessian/lambda_min`, `hessian/lambda_max`: the signed extreme eigenvalues, before the first step, at the end, and
      after every tenth part of training. At the default intervals they keep to `max_share`: with fewer products (at
      least 6 at the end), whose bounds are larger, or less often.
    - `hessian/lambda_min_bound`, `hessian/lambda_max_bound`: an eigenvalue lies within this distance of them.
    - `hessian/learning_rate_times_lambda_max` and `hessian/stability_limit`, for Keras's SGD without clipping, decay
      and averaging. Beyond the limit, steps on a quadratic diverge: it is 2, with momentum b 2 (1 + b), with Nesterov's
      2 (1 + b) / (1 + 2 b). They are left out where the limit does not hold: for a custom `train_step` or training
      loop, which may change gradients; for variables with constraints; and for losses that are sums over rows, whose
      curvature depends on the batch size. The learning rate is that of the next step. In the logs of the epoch at whose
      end lambda_max was measured, and after the last step, it is the rate that the optimizer has at that time.
    - `hessian/trace` with `hessian/trace_standard_error`, if `trace` is True.
    - `convexity/theta_paper`, `convexity/theta_sharp`: the certified moduli of strong convexity, where the theorem
      covers the model (see `tfopt.curvature.convexity_certificate`).
    - `convexity/fraction_along_gradient`, `..._certified_paper`, `..._certified_sharp`: the share of the absolute
      change of the loss between measurements that began while the quantity was positive.
    - `convexity/fraction_of_steps_...`: the share of steps, for each of these quantities.
    - `convexity/fraction_undecided_...`: the share of the change between two measurements of different sign. There the
      step at which the sign changed is not known.
    - `convexity/seconds`: the time that measuring has taken so far.

    Args:
        data: The data to measure on, see `Measurement`.
        loss: The loss to measure, see `Measurement`.
        eigenvalues: Whether to find the extreme eigenvalues. Default True.
        trace: Whether to estimate the trace when eigenvalues are due. Default False.
        density: Whether to estimate the spectral density when eigenvalues are due, into `densities`. Default False.
        spectrum_every_n_epochs: When eigenvalues, trace and density are due, an integer >= 1. None (default) means
            after every tenth part of training, within `max_share`. A given interval is kept exactly.
        num_matvecs: The largest number of Hessian products for the eigenvalues, and the number for the trace and for
            each of 4 random vectors of the density. Default 20.
        certificate: True requires the certificate, False leaves it out. None (default) means where the theorem applies.
        self_check: Whether to check the first Hessian product, as `HessianOperator` does. Default True.
        seed: Seed of the random vectors, which are the same for each measurement; an integer >= 0. Default 0.
        **options: When to measure, and the other options of every `Measurement`.

    Attributes:
        history: As in every `Measurement`.
        densities: The `SpectralDensity` of each step at which it was measured, by step.
        certificate_refused: Why there is no certificate. Empty if there is one, or if `certificate` is False.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range; in `fit`: the model or data cannot be measured.
        RuntimeError: In `fit`, before the first step: the Hessian's products are wrong, see `HessianOperator`.

    Example:
        >>> from tfopt.models import milne_regression
        >>> model = milne_regression(seed=0, weight_decay=0.5)
        >>> model.compile(keras.optimizers.SGD(0.05), loss="mse")
        >>> x = np.linspace(-1, 1, 20).reshape(-1, 1)
        >>> convexity = Convexity((x, 0 * x))
        >>> _ = model.fit(x, 0 * x, epochs=20, batch_size=20, verbose=0, callbacks=[convexity])
        >>> convexity.history["step"][-1], convexity.history["convexity/theta_sharp"][-1] > 0
        (20, True)
    """

    group = "convexity"

    def __init__(
        self,
        data: Any,
        loss: Any = None,
        *,
        eigenvalues: bool = True,
        trace: bool = False,
        density: bool = False,
        spectrum_every_n_epochs: int | None = None,
        num_matvecs: int = 20,
        certificate: bool | None = None,
        self_check: bool = True,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(data, loss, **options)
        self.eigenvalues = check_flag("eigenvalues", eigenvalues)
        self.trace = check_flag("trace", trace)
        self.density = check_flag("density", density)
        if spectrum_every_n_epochs is not None:
            check_integer("spectrum_every_n_epochs", spectrum_every_n_epochs, minimum=1)
        self.spectrum_cadence = Cadence(None, spectrum_every_n_epochs)
        self.num_matvecs = check_integer("num_matvecs", num_matvecs, minimum=1)
        self.certificate = None if certificate is None else check_flag("certificate", certificate)
        self.self_check = check_flag("self_check", self_check)
        self.seed = check_integer("seed", seed, minimum=0)
        self._products = self._full_share()

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Start a new history."""
        super().on_train_begin(logs)
        self._products = self._full_share()

    def _full_share(self) -> SpectrumShare:
        most = self.num_matvecs if self.eigenvalues else 0
        others = self.num_matvecs * (self.trace + 4 * self.density)
        return SpectrumShare(self._time, most, others, self.spectrum_cadence.every_n_epochs is not None)

    def _start(self) -> None:
        super()._start()
        self.densities: dict[int, SpectralDensity] = {}
        self._shares: dict[str, ChangeShare] = {}
        self._spectrum_step = -1
        self._spectrum_is_due_now = True  # Until it was measured after the start, or after a change of the model.
        self._is_a_mean: bool | None = None  # Not known before the first eigenvalues.
        self._awaited: Any = None  # The optimizer that will take the step after the last eigenvalues.

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_awaited": None}

    def get_state(self) -> dict[str, Any]:
        """Return the measurements, and how far training has come."""
        densities = [[step, d.nodes, d.weights, d.size, d.batch_norm] for step, d in self.densities.items()]
        return super().get_state() | {
            "densities": densities,
            "_spectrum_step": self._spectrum_step,
            "_spectrum_is_due_now": self._spectrum_is_due_now,
            "awaits_step": self._awaited is not None,
            "product_seconds": self._products.product_seconds,
            "shares": {name: vars(share) for name, share in self._shares.items()},
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a state from `get_state`."""
        state = dict(state)
        self.densities = {step: SpectralDensity(*rest) for step, *rest in state.pop("densities")}
        self._shares = {name: ChangeShare(**values) for name, values in state.pop("shares").items()}
        self._spectrum_step = state.pop("_spectrum_step")
        self._spectrum_is_due_now = state.pop("_spectrum_is_due_now")
        self._awaited = self.model.optimizer if state.pop("awaits_step") else None
        self._products.product_seconds = state.pop("product_seconds")
        super().set_state(state)

    # --- the learning rate of the next step, which other callbacks may still change

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Note where the next steps begin, and multiply the last eigenvalue by the learning rate of the next step."""
        super().on_train_batch_begin(batch, logs)
        if self._awaited is not None and self._steps == self._spectrum_step:
            act_after_batch_begin(self, self._correct_product)
        else:
            self._settle_product()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Measure once more if training ended unexpectedly."""
        super().on_train_end(logs)
        self._settle_product()

    def _correct_product(self) -> None:
        row, name = self._spectrum_row, self._logged_as(PRODUCT)
        lambda_max = self.history[self._logged_as("hessian/lambda_max")][row]
        self.history[name][row] = self._latest[name] = product_of(self._awaited, lambda_max)

    def _settle_product(self) -> None:
        """Write the product for TensorBoard, because the step after it was taken, or will not be."""
        if self._awaited is not None:
            self._awaited, name = None, self._logged_as(PRODUCT)
            super()._summarise(self._spectrum_step, {name: self.history[name][self._spectrum_row]})

    def _summarise(self, step: int, numbers: dict[str, float]) -> None:
        super()._summarise(step, {n: number for n, number in numbers.items() if n != self._logged_as(PRODUCT)})

    @property
    def _spectrum_row(self) -> int:
        return self.history["step"].index(self._spectrum_step)

    # --- times of measurements

    def _after_start(self) -> None:
        self._take(is_start=True)

    def _after_batches(self, before: int, after: int) -> None:
        if self.cadence.is_due_between(before, after):
            self._take()

    def _after_epoch(self, epochs: int, is_last: bool) -> None:
        spectrum = None
        if self._wants_spectrum and (is_last or self._is_due_after_epoch(self.spectrum_cadence, epochs)):
            spectrum = self._products.allowed(is_end=is_last)
            if spectrum is None:
                self._put_off()
        if is_last or spectrum is not None or self._is_due_and_allowed(epochs):
            self._take(spectrum=spectrum)

    def _after_training(self) -> None:
        is_missing = self._wants_spectrum and self._spectrum_step != self._steps
        if not self._is_measured(self._steps) or (is_missing and self._is_as_measured()):
            self._take(spectrum=self._products.allowed(is_end=True) if self._wants_spectrum else None)

    def _is_as_measured(self) -> bool:
        # False if Keras has replaced the weights of the last step by averages, or by the best weights.
        loss, _ = self._instruments.hessian.loss_and_gradient()
        return bool(np.isclose(loss, self.history[self._logged_as("convexity/loss")][-1], rtol=1e-6, equal_nan=True))

    @property
    def _wants_spectrum(self) -> bool:
        return self.eigenvalues or self.trace or self.density

    # --- the share of time

    @property
    def _part_of_share(self) -> float:
        return 0.5 if self._wants_spectrum and self._products.is_limited else 1.0

    @property
    def _cost_at_end(self) -> float:
        return self._time.cost + self._products.cost_at_end

    def _num_ahead(self) -> float:
        """Estimate how many products take as long as this training; 0 if nothing says how many rows it has."""
        # For a row, training takes about as long as a gradient, and a product takes about two gradients.
        size, steps = batch_size_of(find_running_fit(self), self.communicator.size), self.parameters.get("steps")
        if size is None or steps is None:
            return 0.0
        epochs = (self.parameters.get("epochs") or 0) - (self._first_epoch or 0)
        return 0.5 * size * steps * epochs / self._probe.num_rows

    def _products_now(self, flat: np.ndarray, is_start: bool) -> int | None:
        """Return the products for eigenvalues at the start, or where they wait since the start or a change."""
        self._products.try_product(lambda: self._instruments.hessian.matvec(flat))
        spectrum = self._products.allowed(num_ahead=self._num_ahead() if is_start else 0.0)
        if spectrum is None and is_start:
            self._put_off()
        return spectrum

    # --- measurements

    def _make_instruments(self) -> "_Instruments":
        objective = self._make_objective()
        hessian = HessianOperator(objective, self_check=self.self_check)
        self.certificate_refused = ""
        if self.certificate is False:
            return _Instruments(hessian, None)
        try:
            return _Instruments(hessian, CertifiedNetwork(objective))
        except NotCoveredError as error:
            if self.certificate:
                raise
            self.certificate_refused = str(error)
            return _Instruments(hessian, None)

    def _after_change(self) -> None:
        super()._after_change()
        self._spectrum_is_due_now = True
        self._is_a_mean = None
        self._settle_product()
        for share in self._shares.values():
            share.interrupt()

    def _measure(
        self, spectrum: int | None = None, is_start: bool = False
    ) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        hessian, network = self._instruments
        self.precision = hessian.precision
        loss, gradient = hessian.loss_and_gradient()
        flat = flatten(gradient)
        size = np.linalg.norm(flat)
        is_sound = bool(np.isfinite(loss) and np.isfinite(size))  # Otherwise training has diverged, and continues.
        with hessian.shared():
            along = curvature_along(hessian, flat) if is_sound and size > 0 else np.nan
            signs = {_GRADIENT: along}
            if network is not None:
                certificate = network.certificate() if is_sound else None
                for name in ("theta_paper", "theta_sharp"):
                    signs[name] = getattr(certificate, name, np.nan)
            values = {"convexity/loss": loss, **{f"convexity/{name}": sign for name, sign in signs.items()}}
            for name, sign in signs.items():
                values |= self._share(name, loss, sign)
            if spectrum is None and self._wants_spectrum and self._spectrum_is_due_now:
                spectrum = self._products_now(flat if is_sound else 0 * flat, is_start)
            if spectrum is not None:
                values |= self._timed_spectrum(is_sound, spectrum)
        return values, {}

    def _share(self, name: str, loss: float, sign: float) -> dict[str, float]:
        share = self._shares.setdefault(name, ChangeShare())
        share.update(loss, sign, self._steps)
        found = {"": share.fraction, "_of_steps": share.fraction_of_steps, "_undecided": share.fraction_undecided}
        return {f"convexity/fraction{kind}_{_SHARES[name]}": value for kind, value in found.items()}

    def _timed_spectrum(self, is_sound: bool, num_matvecs: int) -> dict[str, float]:
        begin, before = _time_share.clock(), self._instruments.hessian.num_matvecs
        values = self._spectrum(is_sound, num_matvecs)
        self._products.add(_time_share.clock() - begin, self._instruments.hessian.num_matvecs - before)
        return values

    def _spectrum(self, is_sound: bool, num_matvecs: int) -> dict[str, float]:
        values: dict[str, float] = {}
        hessian = self._instruments.hessian
        nan = float("nan")
        if self._steps != self._spectrum_step:
            self._settle_product()
        self._spectrum_step, self._spectrum_is_due_now = self._steps, False
        if self.eigenvalues:
            ends = extremal_eigenvalues(hessian, num_matvecs, seed=self.seed) if is_sound else None
            names = ("lambda_min", "lambda_max", "lambda_min_bound", "lambda_max_bound")
            values |= {f"hessian/{name}": nan if ends is None else getattr(ends, name) for name in names}
            optimizer = optimizer_with_limit(self.model, hessian.variables)
            if optimizer is not None and self._is_loss_of_fit(is_sound):
                values |= stability_of(optimizer, values["hessian/lambda_max"])
                self._awaited = optimizer
        if self.trace:
            found = trace(hessian, self.num_matvecs, self.seed) if is_sound else None
            values["hessian/trace"] = nan if found is None else found.value
            values["hessian/trace_standard_error"] = nan if found is None else found.standard_error
        if self.density and is_sound:
            self.densities[self._steps] = spectral_density(hessian, 4, self.num_matvecs, self.seed)
        return values

    def _is_loss_of_fit(self, is_sound: bool) -> bool:
        """Return whether the loss is known to be a mean: then `fit` and the probe may differ in batch size."""
        if self._is_a_mean is None and is_sound:
            self._is_a_mean = not depends_on_batch_size(self._instruments.hessian.objective)
        return bool(self._is_a_mean)

    def plot(self, ax: "matplotlib.axes.Axes | None" = None, label: str | None = None) -> "matplotlib.axes.Axes":
        """Draw curvatures, eigenvalues and certified moduli against steps, on a scale that shows both signs.

        Args:
            ax: Axes to draw into; None (default) makes new ones.
            label: Text before the names of the lines; None (default) for none.

        Returns:
            The axes.
        """
        prefix, ax = check_label(label), _plotting.get_axes(ax)
        names = [f"convexity/{_GRADIENT}", "hessian/lambda_max", "hessian/lambda_min"]
        names += ["convexity/theta_sharp", "convexity/theta_paper"]
        steps, sizes = np.array(self.history["step"]), []
        for name in names:
            if self._logged_as(name) in self.history:
                values = np.array(self.history[self._logged_as(name)])
                known = np.isfinite(values)
                ax.plot(steps[known], values[known], marker=".", label=f"{prefix} {name.split('/')[1]}".strip())
                sizes += list(np.abs(values[known & (values != 0)]))
        ax.axhline(0.0, color="black", linewidth=0.8)
        ax.set(xlabel="step", ylabel="curvature")
        ax.set_yscale("symlog", linthresh=float(np.median(sizes)) / 100 if sizes else 1.0)
        if sizes:
            _plotting.add_legend(ax)
        return ax
