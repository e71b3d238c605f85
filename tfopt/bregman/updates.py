"""The other block updates of the splitting: exact minimisations over one block with all others fixed.

The problem (Taylor et al. 2016, equation 3, rows as samples; A_0 are the inputs, b_l biases, h_l activations):

    minimise  loss(Z_L, y) + <Z_L, lambda> + beta_L |Z_L - A_{L-1} W_L - b_L|^2
              + sum_{l<L} ( gamma_l |A_l - h_l(Z_l)|^2 + beta_l |Z_l - A_{l-1} W_l - b_l|^2 )

The updates of pre-activations are in `activations`, those of the outputs in `losses`.
"""

from typing import Any

import numpy as np
import tensorflow as tf

from tfopt._compiled import compiled
from tfopt.bregman.activations import as_scalar

__all__ = ["activation_gain", "activation_update", "multiplier_update", "weight_update"]


def weight_update(gram: Any, cross_gram: Any, ridge: Any = 0.0, center: Any = None, penalty: Any = None) -> Any:
    """Minimise |Z - A W|^2 + sum_i ridge_i |W_i - center_i|^2 + sum_i penalty_i |W_i|^2 over the weights W.

    Only A'A and A'Z are needed, whose size does not depend on the number of rows. The solver is Cholesky's
    factorisation in the dtype of `gram`. It fails if A'A is singular and nothing was added. Then the eigenvalues give
    the solution of minimum norm.

    Args:
        gram: A'A, shape `(inputs, inputs)`; with biases the last row and column belong to a column of ones.
        cross_gram: A'Z, shape `(inputs, outputs)`.
        ridge: >= 0, a number (default 0), or one for each row of W, shape `(inputs,)`.
        center: Shape `(inputs, outputs)`; None (default) for zero.
        penalty: An additional penalty of each row of W, >= 0, shape `(inputs,)`; None (default) for none.

    Returns:
        The weights, shape `(inputs, outputs)`.
    """
    ridge = as_scalar(ridge, gram.dtype)
    added = ridge * tf.ones(tf.shape(gram)[:1], gram.dtype)
    if penalty is not None:
        added += tf.cast(penalty, gram.dtype)
    right = cross_gram if center is None else cross_gram + tf.reshape(ridge, (-1, 1)) * center
    return solve_positive(tf.linalg.set_diag(gram, tf.linalg.diag_part(gram) + added), right)


def solve_positive(matrix: Any, right: Any) -> Any:
    """Solve a positive semidefinite system, shapes `(n, n)` and `(n, k)`; minimum norm if it is singular."""
    # Inside `tf.function` a singular matrix gives an error or values that are not finite: see `solve_compiled`.
    if not tf.executing_eagerly():
        return tf.linalg.cholesky_solve(tf.linalg.cholesky(matrix), right)
    try:
        solution = tf.linalg.cholesky_solve(tf.linalg.cholesky(matrix), right)
        if bool(tf.reduce_all(tf.math.is_finite(solution))):
            return solution
    except tf.errors.InvalidArgumentError:  # TensorFlow's kernel raises if a pivot is not positive.
        pass
    if not bool(tf.reduce_all(tf.math.is_finite(matrix))):
        return tf.fill(tf.shape(right), tf.constant(float("nan"), right.dtype))
    values, vectors = tf.linalg.eigh(matrix)
    floor = tf.reduce_max(values) * (matrix.shape[0] * float(np.finfo(matrix.dtype.as_numpy_dtype).eps))
    inverse = tf.where(values > floor, 1 / tf.where(values > floor, values, tf.ones_like(values)), 0)
    return vectors @ (inverse[:, None] * tf.matmul(vectors, right, transpose_a=True))


def as_tensor(value: Any) -> Any:
    """Convert a Python number to a float64 tensor; return tensors unchanged."""
    return value if tf.is_tensor(value) else tf.constant(value, tf.float64)


def solve_compiled(function: Any, *arguments: Any) -> Any:
    """Call a `tf.function` that uses `solve_positive`; if a matrix is singular, call its Python function instead."""
    try:
        result = function(*arguments)
        if all(bool(tf.reduce_all(tf.math.is_finite(tensor))) for tensor in tf.nest.flatten(result)):
            return result
    except tf.errors.InvalidArgumentError:  # A pivot is not positive. Some kernels return NaN instead.
        pass
    return function.python_function(*arguments)


def activation_gain(kernel: Any, linear_penalty: Any, activation_penalty: Any) -> Any:
    """Compute beta W' (beta W W' + gamma I)^-1, the factor from the residual to the update of activations.

    It equals beta (beta W' W + gamma I)^-1 W'; the smaller of the two systems is solved, in float64.

    Args:
        kernel: W of the next layer without its bias, shape `(inputs, outputs)`.
        linear_penalty: beta of the next layer, > 0.
        activation_penalty: gamma of this layer, > 0.

    Returns:
        Shape `(outputs, inputs)`, the kernel's dtype.
    """
    wide = tf.cast(kernel, tf.float64)
    beta, gamma = (as_scalar(penalty, tf.float64) for penalty in (linear_penalty, activation_penalty))
    is_tall = kernel.shape[0] >= kernel.shape[1]
    matrix = beta * tf.matmul(wide, wide, transpose_a=is_tall, transpose_b=not is_tall)
    matrix = tf.linalg.set_diag(matrix, tf.linalg.diag_part(matrix) + gamma)
    solution = solve_positive(matrix, beta * (tf.transpose(wide) if is_tall else wide))
    return tf.cast(solution if is_tall else tf.transpose(solution), kernel.dtype)


COMPILED_GAIN = compiled(activation_gain)  # To be called by `solve_compiled`.


def activation_update(h: Any, z_next: Any, kernel: Any, gain: Any) -> Any:
    """Minimise beta |Z_next - A W|^2 + gamma |A - h|^2 over the activations A.

    A = (beta Z_next W' + gamma h) (beta W W' + gamma I)^-1, computed as h + (Z_next - h W) gain. This form loses no
    digits if A differs little from h.

    Args:
        h: h(Z), shape `(rows, inputs)`.
        z_next: Pre-activations of the next layer minus its bias, shape `(rows, outputs)`.
        kernel: W of the next layer, shape `(inputs, outputs)`.
        gain: `activation_gain` of the kernel and both penalties, shape `(outputs, inputs)`.

    Returns:
        The activations, shape `(rows, inputs)`.
    """
    return h + tf.matmul(z_next - tf.matmul(h, kernel), gain)


def multiplier_update(multiplier: Any, residual: Any, linear_penalty: Any, step: float) -> Any:
    """Return lambda + step * beta * (Z - A W).

    After the minimisation over Z, a step of 2 gives -d loss(Z), a subgradient: the Bregman iteration. The paper prints
    a step of 1.

    Args:
        multiplier: lambda, any shape.
        residual: Z - A W, same shape.
        linear_penalty: beta.
        step: 1 or 2.

    Returns:
        The new multiplier, same shape.
    """
    return multiplier + step * as_scalar(linear_penalty, residual.dtype) * residual


def mean_squares(gram: Any, with_bias: bool) -> Any:
    """Return the mean of the inputs' diagonal entries of A'A, and the bias's own entry, shape `(inputs,)`."""
    # A ridge in these units does not depend on the unit of the inputs. `gram` is A'A, shape `(inputs, inputs)`, or its
    # mean over rows. `with_bias`: the last input is the column of ones.
    squares = tf.linalg.diag_part(gram)
    inputs = squares[:-1] if with_bias else squares
    means = tf.fill(tf.shape(inputs), tf.reduce_mean(inputs))
    return tf.concat([means, squares[-1:]], axis=0) if with_bias else means


def join_bias(kernel: Any, bias: Any, decay: Any, with_bias: bool) -> tuple[Any, Any]:
    """Return kernel and bias as one float64 matrix, the bias as last row, and each row's decay, 0 for the bias."""
    matrix, decays = tf.cast(kernel, tf.float64), tf.fill([kernel.shape[0]], decay)
    if with_bias:
        matrix = tf.concat([matrix, tf.cast(bias, tf.float64)[None]], axis=0)
        decays = tf.concat([decays, tf.zeros(1, tf.float64)], axis=0)
    return matrix, decays


def split_bias(matrix: Any, kernel: Any, bias: Any, with_bias: bool) -> tuple[Any, Any]:
    """Undo `join_bias`: return kernel and bias in the kernel's dtype; a layer without a bias keeps `bias`."""
    new = tf.cast(matrix, kernel.dtype)
    return (new[:-1], new[-1]) if with_bias else (new, bias)
