"""The noisy quadratic model, written from its equations in NumPy float64, one step at a time."""

import numpy as np


def step_matrices(curvature, learning_rate, momentum=0.0, nesterov=False, ema_decay=0.0, preconditioner_power=0.0):
    """Return A and b of z' = A z + b e for z = (theta, velocity, average), where e is the noise of the gradient."""
    step = learning_rate * curvature**-preconditioner_power
    theta, velocity, average = np.eye(3)
    gradient = curvature * theta
    new_velocity = momentum * velocity + step * gradient
    new_theta = theta - (momentum * new_velocity + step * gradient if nesterov else new_velocity)
    new_average = ema_decay * average + (1 - ema_decay) * new_theta
    moved = -(1 + momentum) * step if nesterov else -step
    return np.stack([new_theta, new_velocity, new_average]), np.array([moved, step, (1 - ema_decay) * moved])


def loss_curve(problem, batch_size, num_steps, **settings):
    """Return the expected loss after 0, 1, ..., num_steps steps, from the second moments of all directions."""
    matrices, noises = zip(*(step_matrices(h, **settings) for h in problem.curvature), strict=True)
    matrix, noise = np.stack(matrices), np.stack(noises)
    added = noise[:, :, None] * noise[:, None, :] * (problem.noise_variance / batch_size)[:, None, None]
    moment = np.zeros((len(problem.curvature), 3, 3))
    start = np.array([1.0, 0.0, 1.0])
    moment += np.outer(start, start) * problem.initial_second_moment[:, None, None]
    weights = 0.5 * problem.multiplicity * problem.curvature
    losses = [weights @ moment[:, 2, 2]]
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(num_steps):
            moment = matrix @ moment @ matrix.transpose(0, 2, 1) + added
            losses.append(weights @ moment[:, 2, 2])
    return np.array(losses)


def dense_loss_curve(hessian, covariance, start, batch_size, num_steps, learning_rate, momentum=0.0):
    """Return the expected loss of heavy ball with full matrices: second moments of (theta, velocity), 2n x 2n."""
    n = len(hessian)
    eye, zero = np.eye(n), np.zeros((n, n))
    matrix = np.block([[eye - learning_rate * hessian, -momentum * eye], [learning_rate * hessian, momentum * eye]])
    enters = np.concatenate([-learning_rate * eye, learning_rate * eye])
    added = enters @ (covariance / batch_size) @ enters.T
    moment = np.block([[start, zero], [zero, zero]])
    losses = [0.5 * np.trace(hessian @ moment[:n, :n])]
    for _ in range(num_steps):
        moment = matrix @ moment @ matrix.T + added
        losses.append(0.5 * np.trace(hessian @ moment[:n, :n]))
    return np.array(losses)


def first_passage(losses, target):
    """Return the first index at which the losses are at most the target, or infinity."""
    reached = np.flatnonzero(losses <= target)
    return float(reached[0]) if len(reached) else np.inf
