"""Time one step of the optimizers against their peers in other libraries.

There is one process per framework. All run at the same time and take turns. Writes
`benchmarks/results/optimizers.json`, from which the table in `docs/benchmarks.md` is made.

Run with `make bench`, or `python benchmarks/optimizers.py --rounds 15`.
"""

import statistics

import environment
import workers

FRAMEWORKS = ("keras", "optax", "torch")


def main(argv: list[str] | None = None) -> dict:
    """Measure, write and return the results."""
    parser = environment.make_parser(__doc__, "optimizers", rounds=15)
    parser.add_argument("--frameworks", nargs="+", default=list(FRAMEWORKS), choices=FRAMEWORKS)
    arguments = parser.parse_args(argv)
    seconds = workers.take_turns("optimizer_workers.py", arguments.frameworks, arguments.rounds)
    packages = ["tensorflow", "keras", "numpy", "jax", "optax", "torch", "pytorch-optimizer"]
    result = {
        "rounds": arguments.rounds,
        "milliseconds": {
            name: {"median": 1e3 * statistics.median(values), "minimum": 1e3 * min(values)}
            for name, values in seconds.items()
        },
    }
    environment.write(arguments.output, packages, result)
    for name, value in result["milliseconds"].items():
        print(f"{name:40s} {value['median']:8.2f} ms (minimum {value['minimum']:.2f})")
    return result


if __name__ == "__main__":
    main()
