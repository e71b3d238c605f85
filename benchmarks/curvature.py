"""Time products with the Hessian against a gradient, PyHessian and curvlinops, and the cost of two eigenvalues.

There is one process per framework, and they take turns. The eigenvalues are the smallest and the largest of the same
network's Hessian to 1%, by `tfopt.curvature.extremal_eigenvalues` and by scipy's `eigsh` on the same operator. Writes
`benchmarks/results/curvature.json`.

Run with `make bench`, or `python benchmarks/curvature.py --rounds 15`.
"""

import json
import statistics
import time
from typing import Any

import environment
import workers


def find_eigenvalues() -> dict[str, dict[str, Any]]:
    """Return both ends of the spectrum by two methods, with the number of products and the seconds of each."""
    import curvature_workers
    import keras
    from scipy.sparse.linalg import eigsh

    from tfopt import models
    from tfopt.curvature import HessianOperator, extremal_eigenvalues

    x, y, weights, vector = curvature_workers.make_problem()
    width = curvature_workers.WIDTH
    model = models.mlp((width,), (width, width), curvature_workers.CLASSES)
    model.set_weights(weights)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    matrix = HessianOperator(model, loss, x, y, batch_size=len(x))
    matrix @ vector  # The first product compiles and checks itself.
    results = {}
    start = time.perf_counter()
    ends = extremal_eigenvalues(matrix, 300, tolerance=0.01)
    results["tfopt extremal_eigenvalues"] = {
        "ends": [ends.lambda_min, ends.lambda_max],
        "products": ends.num_matvecs,
        "seconds": time.perf_counter() - start,
    }
    before, start = matrix.num_matvecs, time.perf_counter()
    with matrix.shared():
        found = eigsh(matrix.to_scipy(), k=2, which="BE", tol=0.01, v0=vector, return_eigenvectors=False)
    results["scipy eigsh"] = {
        "ends": sorted(map(float, found)),
        "products": matrix.num_matvecs - before,
        "seconds": time.perf_counter() - start,
    }
    return results


def main(argv: list[str] | None = None) -> None:
    """Measure and write the results."""
    arguments = environment.make_parser(__doc__, "curvature", rounds=31).parse_args(argv)
    seconds = workers.take_turns("curvature_workers.py", ("tfopt", "torch"), arguments.rounds)
    result = {
        "rounds": arguments.rounds,
        "milliseconds": {name: 1e3 * statistics.median(values) for name, values in seconds.items()},
        "eigenvalues": find_eigenvalues(),
    }
    environment.write(
        arguments.output,
        ["tensorflow", "keras", "numpy", "scipy", "torch", "pyhessian", "curvlinops-for-pytorch"],
        result,
    )
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
