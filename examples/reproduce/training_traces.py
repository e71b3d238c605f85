"""Trainings of one network by different methods, with its weights along a clock that runs only while it trains."""

import time
from collections.abc import Callable

import keras
import numpy as np
import scipy.optimize
import tensorflow as tf

from tfopt import datasets, models
from tfopt.bregman import BregmanTrainer

# Seconds on a method's clock, and its weights at those times.
Trace = list[tuple[float, list[np.ndarray]]]


class Clock(keras.callbacks.Callback):
    """Keeps the weights and the time at the end of each epoch; the time to keep them does not count."""

    def __init__(self, now: Callable[[], float]) -> None:
        super().__init__()
        self.trace: Trace = []
        self._now = now
        self._begin = now()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Keep the weights."""
        now = self._now()
        self.trace.append((now - self._begin, self.model.get_weights()))
        self._begin += self._now() - now


class Methods:
    """Methods that train a network with ReLUs for a classification, all from the same weights.

    Args:
        data: The data. Two classes make a network with one logit.
        hidden_units: Widths of the hidden layers.
        seed: Seed of the weights.
        now: The clock: `time.perf_counter`, or `time.process_time` for processor seconds on a shared machine.
    """

    def __init__(
        self,
        data: datasets.Dataset,
        hidden_units: tuple[int, ...],
        seed: int,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.data, self.hidden_units, self.seed, self._now = data, hidden_units, seed, now
        self._is_binary = data.num_classes == 2
        self._loss = "binary_crossentropy" if self._is_binary else "sparse_categorical_crossentropy"

    def make_model(self) -> keras.Model:
        """Return the network at its first weights, which ends in logits."""
        outputs = 1 if self._is_binary else self.data.num_classes
        return models.mlp(self.data.input_shape, self.hidden_units, outputs, seed=self.seed)

    def without_gradients(self, epochs: int, **options) -> Trace:
        """Train by `BregmanTrainer` with some options, and return the trace."""
        model = self.make_model()
        first = model.get_weights()
        trainer = BregmanTrainer(model, self._loss, measure_every_n_epochs=epochs, **options)
        trainer.fit(self.data.x_train, self.data.y_train, epochs=2, verbose=0)  # This compiles.
        model.set_weights(first)
        clock = Clock(self._now)
        trainer.fit(self.data.x_train, self.data.y_train, epochs=epochs, verbose=0, callbacks=[clock])
        return clock.trace

    def sweeps_of(self, epochs: int, **options) -> dict[str, list[float]]:
        """Train without gradients and without a clock; return objective and primal residuals after each sweep."""
        trainer = BregmanTrainer(self.make_model(), self._loss, **options)
        history = trainer.fit(self.data.x_train, self.data.y_train, epochs=epochs, verbose=0).history
        return {name: values for name, values in history.items() if name == "objective" or "residual" in name}

    def by_keras(self, epochs: int, optimizer: keras.Optimizer) -> Trace:
        """Train by an optimizer, in batches of 256 rows, and return the trace."""
        model = self.make_model()
        losses = keras.losses.BinaryCrossentropy, keras.losses.SparseCategoricalCrossentropy
        model.compile(optimizer, losses[not self._is_binary](from_logits=True), jit_compile=True)
        optimizer.build(model.trainable_variables)
        labels = self.data.y_train.astype("float32" if self._is_binary else "int64")
        batches = tf.data.Dataset.from_tensor_slices((self.data.x_train, labels))
        batches = batches.shuffle(len(labels), seed=0).batch(256, drop_remainder=True).prefetch(2)
        variables = [*model.variables, *optimizer.variables]
        first = [keras.ops.convert_to_numpy(variable) for variable in variables]
        model.fit(batches.take(1), epochs=1, verbose=0, shuffle=False)  # This compiles.
        for variable, value in zip(variables, first, strict=True):
            variable.assign(value)
        clock = Clock(self._now)
        model.fit(batches, epochs=epochs, verbose=0, callbacks=[clock], shuffle=False)
        return clock.trace

    def by_scipy(self, iterations: int, method: str) -> Trace:
        """Train on all rows at once by one of SciPy's methods, with loss and gradient compiled by XLA."""
        weights = self.make_model().get_weights()
        shapes = [w.shape for w in weights]
        sizes = [int(np.prod(shape)) for shape in shapes]
        x = tf.constant(self.data.x_train.reshape(len(self.data.x_train), -1))
        y = tf.constant(self.data.y_train)

        @tf.function(jit_compile=True, autograph=False)
        def loss_and_gradient(flat: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            with tf.GradientTape() as tape:
                tape.watch(flat)
                parts = [tf.reshape(p, s) for p, s in zip(tf.split(flat, sizes), shapes, strict=True)]
                outputs = x
                for kernel, bias in zip(parts[:-2:2], parts[1:-2:2], strict=True):
                    outputs = tf.nn.relu(outputs @ kernel + bias)
                loss = self._mean_loss(y, outputs @ parts[-2] + parts[-1])
            return loss, tape.gradient(loss, flat)

        def function(flat: np.ndarray) -> tuple[float, np.ndarray]:
            loss, gradient = loss_and_gradient(tf.constant(flat, tf.float32))
            return float(loss), gradient.numpy().astype(np.float64)

        def unflattened(flat: np.ndarray) -> list[np.ndarray]:
            return [p.reshape(s) for p, s in zip(np.split(flat, np.cumsum(sizes)[:-1]), shapes, strict=True)]

        flat = np.concatenate([w.ravel() for w in weights]).astype(np.float64)
        function(flat)  # This compiles.
        trace: Trace = []
        begin, options = self._now(), {"maxiter": iterations, "gtol": 0.0}
        scipy.optimize.minimize(
            function,
            flat,
            jac=True,
            method=method,
            callback=lambda current: trace.append((self._now() - begin, unflattened(current))),
            options=options,
        )
        return trace

    def _mean_loss(self, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        if self._is_binary:
            targets = tf.cast(labels[:, None], tf.float32)
            return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(targets, logits))
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))

    def accuracies(self, trace: Trace) -> dict[str, list[float]]:
        """Return the seconds of a trace, and accuracies on (at most 50,000) training rows and on test rows."""
        result: dict[str, list[float]] = {"seconds": [], "train": [], "test": []}
        model, data = self.make_model(), self.data
        for seconds, weights in trace:
            model.set_weights(weights)
            result["seconds"].append(seconds)
            rows = {"train": (data.x_train[:50_000], data.y_train[:50_000]), "test": (data.x_test, data.y_test)}
            for name, (x, y) in rows.items():
                outputs = model.predict(x, batch_size=8192, verbose=0)
                classes = outputs[:, 0] > 0 if self._is_binary else outputs.argmax(axis=1)
                result[name].append(float((classes == y).mean()))
        return result
