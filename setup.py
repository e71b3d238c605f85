"""Package list and directory mapping; all metadata is in pyproject.toml."""

from setuptools import setup

# `callbacks/` and `models/` stand at the top level of the repository and are installed as parts of `tfopt`. They are
# listed by hand because `find_packages()` would publish a top-level package called `callbacks`.
setup(
    packages=[
        "tfopt",
        "tfopt._checkpoints",
        "tfopt.bregman",
        "tfopt.communicator",
        "tfopt.curvature",
        "tfopt.datasets",
        "tfopt.distributed",
        "tfopt.distributed.build_horovod",
        "tfopt.nqm",
        "tfopt.optimizers",
        "tfopt.planning",
        "tfopt.relative_trust",
        "tfopt.callbacks",
        "tfopt.callbacks._resuming",
        "tfopt.models",
    ],
    package_dir={"tfopt": "tfopt", "tfopt.callbacks": "callbacks", "tfopt.models": "models"},
    package_data={"tfopt": ["py.typed"]},
)
