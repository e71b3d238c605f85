"""Measure the peak memory of eigenvalues of ResNet-20's Hessian, by tfopt and by PyHessian, in a process for each.

Both compute the same number of products on the same number of rows, 32 x 32 x 3, in one batch: tfopt finds both ends of
the spectrum by `extremal_eigenvalues`, PyHessian the largest absolute value by `eigenvalues`. PyHessian sets the model
to evaluation, so that its batch normalisation uses moving averages; tfopt does this, and what `fit` does. The peak is
that of the process after the model was built, less what it had then. Writes `benchmarks/results/memory.json`.

Run with `make bench`, or `python benchmarks/memory.py --rounds 1 --rows 512`.
"""

import functools
import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence

import environment
import numpy as np

PRODUCTS, CLASSES = 3, 10


def make_rows(num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images, rows first and channels last, and their labels."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((num_rows, 32, 32, 3), "float32"), rng.integers(0, CLASSES, num_rows)


def with_tfopt(num_rows: int, **options: object) -> Callable[[], object]:
    """Return the measurement by tfopt, on a model that is built."""
    import keras

    from tfopt import models
    from tfopt.curvature import HessianOperator, extremal_eigenvalues

    model = models.resnet((32, 32, 3), 20, CLASSES, seed=0)
    x, y = make_rows(num_rows)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def run() -> object:
        matrix = HessianOperator(model, loss, x, y, batch_size=num_rows, self_check=False, **options)
        return extremal_eigenvalues(matrix, PRODUCTS, tolerance=1e-9)

    return run


def with_pyhessian(num_rows: int) -> Callable[[], object]:
    """Return the measurement by PyHessian, on a model that is built."""
    import torch
    from pyhessian import hessian
    from torch import nn

    class Block(nn.Module):
        """Two convolutions beside a skip connection."""

        def __init__(self, before: int, channels: int, stride: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(before, channels, 3, stride, 1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
                nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
                nn.BatchNorm2d(channels),
            )
            self.stride, self.added = stride, channels - before

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            skipped = x if self.added == 0 else x[:, :, :: self.stride, :: self.stride]
            return torch.relu(self.body(x) + nn.functional.pad(skipped, (0, 0, 0, 0, 0, self.added)))

    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    channels = 16
    for width in (16, 32, 64):
        for _ in range(3):
            layers.append(Block(channels, width, 1 if width == channels else 2))
            channels = width
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES))
    x, y = make_rows(num_rows)
    data = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(y)

    def run() -> object:
        matrix = hessian(model, nn.CrossEntropyLoss(), data=data, cuda=False)
        return matrix.eigenvalues(maxIter=PRODUCTS, tol=0.0)

    return run


CASES: dict[str, Callable[[int], Callable[[], object]]] = {
    "tfopt, statistics of the batch": with_tfopt,
    "tfopt, moving averages": functools.partial(with_tfopt, batch_norm="moving"),
    "tfopt, moving averages, max_memory=1e9": functools.partial(with_tfopt, batch_norm="moving", max_memory=10**9),
    "PyHessian, moving averages": with_pyhessian,
}


def measure(case: str, num_rows: int) -> int:
    """Return the peak memory of a measurement in this process, in bytes."""
    run = CASES[case](num_rows)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run()
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure in turns and write the results; with `CASE ROWS`, print one measurement."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] and words[0] in CASES:
        print("BYTES", measure(words[0], int(words[1])))
        return
    arguments = environment.make_parser(__doc__, "memory", rounds=3, rows=512).parse_args(words)
    found: dict[str, list[int]] = {case: [] for case in CASES}
    for _ in range(arguments.rounds):
        for case in CASES:
            command = [sys.executable, __file__, case, str(arguments.rows)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[case].append(int(done.stdout.split("BYTES")[1]))
    result = {"rows": arguments.rows, "products": PRODUCTS}
    result |= {"bytes": {case: statistics.median(values) for case, values in found.items()}}
    environment.write(arguments.output, ["tensorflow", "keras", "numpy", "torch", "pyhessian"], result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
