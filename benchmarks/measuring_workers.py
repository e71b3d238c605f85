"""One process of `measuring.py`: seconds of one build of tfopt, or of TensorFlow alone."""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import keras
import measuring_models
import numpy as np
import tensorflow as tf
import workers

RUN, VECTORS = 20, 8  # products of a run, and vectors that are multiplied together


def bare_functions(name: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return TensorFlow's gradient of a network, and its product with the Hessian, reverse mode over reverse mode."""
    model, loss, x, y = measuring_models.make(name)
    inputs, labels = tf.constant(x), tf.constant(y)
    variables = [variable.value for variable in model.trainable_variables]
    vectors = [tf.random.stateless_normal(v.shape, (0, index)) for index, v in enumerate(variables)]

    def differentiated(inputs: Any, labels: Any) -> list[Any]:
        with tf.GradientTape() as tape:
            value = loss(labels, model(inputs, training=True))
        return [tf.convert_to_tensor(part) for part in tape.gradient(value, variables)]

    @tf.function(autograph=False)
    def multiply(inputs: Any, labels: Any, vectors: list[Any]) -> list[Any]:
        with tf.GradientTape() as tape:
            gradients = differentiated(inputs, labels)
        found = tape.gradient(gradients, variables, output_gradients=vectors)
        return [tf.convert_to_tensor(part) for part in found]

    gradient = tf.function(differentiated, autograph=False)
    return lambda: gradient(inputs, labels)[-1].numpy(), lambda: multiply(inputs, labels, vectors)[-1].numpy()


def first_bare(name: str) -> dict[str, float]:
    """Return the seconds of the first call of TensorFlow's product."""
    _, multiply = bare_functions(name)
    return {"product": _seconds(multiply)}


def first_product(name: str) -> dict[str, float]:
    """Return the seconds until the first product of an operator, of another of its model, and of its architecture."""
    from tfopt.curvature import HessianOperator

    def product(model: keras.Model) -> None:
        matrix = HessianOperator(model, loss, x, y, batch_size=len(x))
        matrix @ np.ones(matrix.shape[0], matrix.dtype)

    model, loss, x, y = measuring_models.make(name)
    found = {"first product": _seconds(lambda: product(model)), "same model": _seconds(lambda: product(model))}
    twin = measuring_models.make(name)[0]
    return found | {"same architecture": _seconds(lambda: product(twin))}


def first_rows(name: str, kinds: list[str], **options: Any) -> dict[str, float]:
    """Return the seconds of the first measurements of callbacks on one probe, in three fits of equal models."""
    # A new seed makes TensorFlow forget what it has compiled, but not its graphs: as in loops over seeds.
    from tfopt import callbacks
    from tfopt.curvature import Probe

    _, loss, x, y = measuring_models.make(name)
    probe = Probe(x, y, batch_size=len(x))
    found = {}
    for label in ("first rows", "second fit", "third fit, no new seed"):
        model = measuring_models.make(name, is_seeded="no new seed" not in label)[0]
        model.compile(keras.optimizers.SGD(1e-3), loss)
        made, watch = [getattr(callbacks, kind)(probe, **options) for kind in kinds], _Watch()
        model.fit(x, y, batch_size=len(x), epochs=1, verbose=0, callbacks=[*made, watch])
        found |= {label: watch.seconds, f"{label}, processor": watch.processor}
    return found


class _Watch(keras.callbacks.Callback):
    """The last callback: the seconds that the callbacks before it need until the first step."""

    def on_train_begin(self, logs: Any = None) -> None:
        """Start the watch."""
        self._start, self._processor = time.perf_counter(), time.process_time()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Stop the watch."""
        self.seconds = time.perf_counter() - self._start
        self.processor = time.process_time() - self._processor


def product_cases(name: str, build: str) -> dict[str, Callable[[], Any]]:
    """Return TensorFlow's gradient and product, or tfopt's products: alone, in a run, and of several vectors."""
    if build == "bare":
        gradient, multiply = bare_functions(name)
        return {"bare/gradient": gradient, "bare/product": multiply}
    from tfopt.curvature import HessianOperator

    model, loss, x, y = measuring_models.make(name)
    matrix = HessianOperator(model, loss, x, y, batch_size=len(x))
    vector, several = np.ones(matrix.shape[0], matrix.dtype), np.ones((matrix.shape[0], VECTORS), matrix.dtype)

    def run() -> None:
        with matrix.shared():
            for _ in range(RUN):
                matrix @ vector

    cases: dict[str, Callable[[], Any]] = {"alone": lambda: matrix @ vector, f"run of {RUN}": run}
    cases[f"{VECTORS} vectors"] = lambda: matrix @ several
    return {f"{build}/{case}": function for case, function in cases.items()}


def _seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


FIRST: dict[str, Callable[[str], dict[str, float]]] = {
    "bare": first_bare,
    "product": first_product,
    "Convexity": lambda name: first_rows(name, ["Convexity"]),
    "no eigenvalues": lambda name: first_rows(name, ["Convexity"], eigenvalues=False),
    "callbacks": lambda name: first_rows(name, ["Convexity", "GradientBreakdown", "GradientNoiseScale"]),
}


def main() -> None:
    """Answer the command line: `first KIND NETWORK` prints seconds, `products BUILD NETWORK` takes turns."""
    section, kind, name = sys.argv[1:]
    if section == "products":
        workers.serve_cases(lambda: product_cases(name, kind).items())
        return
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # All output of the framework goes to standard error.
    print(json.dumps(FIRST[kind](name)), file=answers, flush=True)


if __name__ == "__main__":
    main()
