"""The remaining block updates of the splitting, each an exact minimisation over one block with all others fixed.

The problem (Taylor et al. 2016, equation 3, rows as samples; A_0 are the inputs, b_l biases, h_l activations):

    minimise  loss(Z_L, y) + <Z_L, lambda> + beta_L |Z_L - A_{L-1} W_L - b_L|^2
              + sum_{l<L} ( gamma_l |A_l - h_l(Z_l)|^2 + beta_l |Z_l - A_{l-1} W_l - b_l|^2 )

The updates of pre-activations are in `activations`, those of the outputs in `losses`.
"""

from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.bregman.activations import as_scalar
from tfopt.bregman.compilation import compiled

__all__ = ["activation_gain", "activation_update", "multiplier_update", "weight_update"]


def weight_update(gram: Any, cross_gram: Any, ridge: Any = 0.0, center: Any = None, penalty: Any = None) -> Any:
    """Minimise |Z - A W|^2 + sum_i ridge_i |W_i - center_i|^2 + sum_i penalty_i |W_i|^2 over the weights W.

    Only A'A and A'Z are needed, whose size does not depend on the number of rows. Solved by Cholesky's factorisation in
    the dtype of `gram`; where that fails, as A'A is singular and nothing was added, by the eigenvalues (minimum norm).

    Args:
        gram: A'A, shape `(inputs, inputs)`; with biases the last row and column belong to a column of ones.
        cross_gram: A'Z, shape `(inputs, outputs)`.
        ridge: >= 0, a number, or one for each row of W, shape `(inputs,)`.
        center: Shape `(inputs, outputs)`; None for zero.
        penalty: Shape `(inputs,)`, >= 0, a further penalty of each row of W; None for none.

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
    """Solve with a symmetric matrix without negative eigenvalues.

    Args:
        matrix: Shape `(n, n)`.
        right: Shape `(n, k)`.

    Returns:
        The solution, shape `(n, k)`; where the matrix is singular, the one of minimum norm, or, inside `tf.function`,
        an error or numbers that are not finite: see `solve_compiled`.
    """
    if not tf.executing_eagerly():
        return tf.linalg.cholesky_solve(tf.linalg.cholesky(matrix), right)
    try:
        solution = tf.linalg.cholesky_solve(tf.linalg.cholesky(matrix), right)
        if bool(tf.reduce_all(tf.math.is_finite(solution))):
            return solution
    except tf.errors.InvalidArgumentError:  # TensorFlow's kernel refuses where a pivot is not positive
        pass
    if not bool(tf.reduce_all(tf.math.is_finite(matrix))):
        return tf.fill(tf.shape(right), tf.constant(float("nan"), right.dtype))
    values, vectors = tf.linalg.eigh(matrix)
    floor = tf.reduce_max(values) * (matrix.shape[0] * float(np.finfo(matrix.dtype.as_numpy_dtype).eps))
    inverse = tf.where(values > floor, 1 / tf.where(values > floor, values, tf.ones_like(values)), 0)
    return vectors @ (inverse[:, None] * tf.matmul(vectors, right, transpose_a=True))


def as_tensor(value: Any) -> Any:
    """Make a Python number a float64 tensor; leave tensors as they are.

    Args:
        value: A number or a tensor.

    Returns:
        A tensor.
    """
    return value if tf.is_tensor(value) else tf.constant(value, tf.float64)


def solve_compiled(function: Any, *arguments: Any) -> Any:
    """Call a `tf.function` that solves with `solve_positive`; where a matrix is singular, its Python function instead.

    Args:
        function: The `tf.function`.
        *arguments: Its tensors.

    Returns:
        What it returns.
    """
    try:
        result = function(*arguments)
        if all(bool(tf.reduce_all(tf.math.is_finite(tensor))) for tensor in tf.nest.flatten(result)):
            return result
    except tf.errors.InvalidArgumentError:  # where a pivot is not positive; some kernels give NaN instead
        pass
    return function.python_function(*arguments)


def activation_gain(kernel: Any, linear_penalty: Any, activation_penalty: Any) -> Any:
    """Compute beta W' (beta W W' + gamma I)^-1, by which the update of activations answers the residual.

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


COMPILED_GAIN = compiled(activation_gain, by_xla=False)  # for `solve_compiled`


def activation_update(h: Any, z_next: Any, kernel: Any, gain: Any) -> Any:
    """Minimise beta |Z_next - A W|^2 + gamma |A - h|^2 over the activations A.

    A = (beta Z_next W' + gamma h) (beta W W' + gamma I)^-1, computed as h + (Z_next - h W) gain, which loses nothing
    where A differs little from h.

    Args:
        h: h(Z), shape `(rows, inputs)`.
        z_next: Pre-activations of the next layer minus its bias, shape `(rows, outputs)`.
        kernel: W of the next layer, shape `(inputs, outputs)`.
        gain: What `activation_gain` has made of the kernel and both penalties.

    Returns:
        The activations, shape `(rows, inputs)`.
    """
    return h + tf.matmul(z_next - tf.matmul(h, kernel), gain)


def multiplier_update(multiplier: Any, residual: Any, linear_penalty: Any, step: float) -> Any:
    """Return lambda + step * beta * (Z - A W).

    With a step of 2, after Z was minimised over, this is -d loss(Z), a subgradient: the Bregman iteration. The paper
    prints a step of 1.

    Args:
        multiplier: lambda, any shape.
        residual: Z - A W, same shape.
        linear_penalty: beta.
        step: 1 or 2.

    Returns:
        The new multiplier.
    """
    return multiplier + step * as_scalar(linear_penalty, residual.dtype) * residual


def mean_squares(gram: Any, with_bias: bool) -> Any:
    """Return what a ridge of 1 is for each input of a layer, so that the inputs' unit does not matter.

    Args:
        gram: A'A, shape `(inputs, inputs)`, or its mean over rows.
        with_bias: Whether the last input is the bias's column of ones.

    Returns:
        The mean of the inputs' diagonal entries for each of them, and the bias's own, shape `(inputs,)`.
    """
    squares = tf.linalg.diag_part(gram)
    inputs = squares[:-1] if with_bias else squares
    means = tf.fill(tf.shape(inputs), tf.reduce_mean(inputs))
    return tf.concat([means, squares[-1:]], axis=0) if with_bias else means


def join_bias(kernel: Any, bias: Any, decay: Any, with_bias: bool) -> tuple[Any, Any]:
    """Write a layer's weights as one matrix, the bias as its last row.

    Args:
        kernel: Shape `(inputs, outputs)`.
        bias: Shape `(outputs,)`.
        decay: Penalty of the kernel, a float64 scalar.
        with_bias: Whether the layer has a bias.

    Returns:
        The matrix in float64, and the penalty of each of its rows, zero for the bias.
    """
    matrix, decays = tf.cast(kernel, tf.float64), tf.fill([kernel.shape[0]], decay)
    if with_bias:
        matrix = tf.concat([matrix, tf.cast(bias, tf.float64)[None]], axis=0)
        decays = tf.concat([decays, tf.zeros(1, tf.float64)], axis=0)
    return matrix, decays


def split_bias(matrix: Any, kernel: Any, bias: Any, with_bias: bool) -> tuple[Any, Any]:
    """Undo `join_bias`.

    Args:
        matrix: The weights as one matrix.
        kernel: The layer's kernel, for its dtype.
        bias: The layer's bias, kept where the layer has none.
        with_bias: Whether it has one.

    Returns:
        Kernel and bias.
    """
    new = tf.cast(matrix, kernel.dtype)
    return (new[:-1], new[-1]) if with_bias else (new, bias)
