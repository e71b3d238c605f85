"""One process of `optimizers.py`: one step of the optimizers of one framework."""

import numpy as np
import workers
from workers import Cases

SHAPES = {"big": [(2048, 1024)] * 8, "small": [(32, 32)] * 100}


def make_arrays(shapes: list[tuple[int, int]]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return weights and gradients, lists of float32 arrays with these shapes, of He-initialised size."""
    rng = np.random.default_rng(0)
    weights = [(0.03 * rng.standard_normal(shape)).astype("float32") for shape in shapes]
    gradients = [(0.001 * rng.standard_normal(shape)).astype("float32") for shape in shapes]
    return weights, gradients


def keras_cases() -> Cases:
    """Yield name and step function of Keras's optimizers and ours on TensorFlow, in graph mode and under XLA."""
    import keras
    import tensorflow as tf

    from tfopt.optimizers import LARS, Fromage

    makers = {
        "keras SGD": lambda: keras.optimizers.SGD(1e-4),
        "keras SGD+momentum": lambda: keras.optimizers.SGD(1e-4, momentum=0.9),
        "keras Adam": lambda: keras.optimizers.Adam(1e-4),
        "keras Lion": lambda: keras.optimizers.Lion(1e-4),
        "tfopt Fromage": Fromage,
        "tfopt LARS": LARS,
    }
    for size, shapes in SHAPES.items():
        weights, gradients = make_arrays(shapes)
        grads = [tf.constant(g) for g in gradients]
        for mode, jit_compile in (("graph", False), ("xla", True)):
            for name, make in makers.items():
                optimizer = make()
                optimizer.build([keras.Variable(w) for w in weights])
                step = tf.function(optimizer.apply, jit_compile=jit_compile, autograph=False)
                yield f"{size}/{mode}/{name}", lambda step=step, grads=grads: step(grads)


def optax_cases() -> Cases:
    """Yield name and step function of optax's optimizers under `jax.jit`, with donated buffers."""
    import jax
    import optax

    makers = {"optax.fromage": lambda: optax.fromage(0.01), "optax.lars": lambda: optax.lars(1.0)}
    for size, shapes in SHAPES.items():
        weights, gradients = make_arrays(shapes)
        grads = [jax.numpy.asarray(g) for g in gradients]
        for name, make in makers.items():
            optimizer = make()

            def step(params, state, grads, optimizer=optimizer):
                updates, state = optimizer.update(grads, state, params)
                return optax.apply_updates(params, updates), state

            compiled = jax.jit(step, donate_argnums=(0, 1))
            held = [[jax.numpy.asarray(w) for w in weights]]
            held.append(optimizer.init(held[0]))

            def run(compiled=compiled, held=held, grads=grads):
                held[:] = compiled(held[0], held[1], grads)
                jax.block_until_ready(held)

            yield f"{size}/jit/{name}", run


def torch_cases() -> Cases:
    """Yield name and step function of pytorch_optimizer's and torch's optimizers."""
    # The plain SGD of torch also measures the memory bandwidth.
    import pytorch_optimizer
    import torch

    makers = {
        "torch SGD": lambda p: torch.optim.SGD(p, lr=1e-4),
        "pytorch_optimizer.Fromage": lambda p: pytorch_optimizer.Fromage(p, lr=0.01),
        "pytorch_optimizer.LARS": lambda p: pytorch_optimizer.LARS(p, lr=1.0),
    }
    for size, shapes in SHAPES.items():
        weights, gradients = make_arrays(shapes)
        for name, make in makers.items():
            params = [torch.nn.Parameter(torch.tensor(w)) for w in weights]
            for param, gradient in zip(params, gradients, strict=True):
                param.grad = torch.tensor(gradient)
            yield f"{size}/eager/{name}", make(params).step


if __name__ == "__main__":
    workers.serve({"keras": keras_cases, "optax": optax_cases, "torch": torch_cases})
