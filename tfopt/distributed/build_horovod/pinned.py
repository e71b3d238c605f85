"""Downloads of the Horovod build: exact versions, and the SHA-256 hashes of their files.

pip compares a file with these hashes before it unpacks the file or runs any of it. Horovod's runtime requirements are
not pinned: they are installed among the user's packages, in versions that suit them, and pip checks these files against
the hashes of the package index.
"""

from collections.abc import Mapping
from pathlib import Path

HOROVOD_VERSION = "0.28.1"
SOURCE: dict[str, tuple[str, ...]] = {
    f"horovod=={HOROVOD_VERSION}": ("92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0",)
}
# Horovod's setup needs pkg_resources, which setuptools contains up to version 80.
BUILD_TOOLS: dict[str, tuple[str, ...]] = {
    "setuptools==80.10.2": ("95b30ddfb717250edb492926c92b5221f7ef3fbcc2b07579bcd4a27da21d0173",),
    "wheel==0.45.1": ("708e7481cc80179af0e556bbf0cc00b8444c7321e2700b8d8580231d13017248",),
}
# The newest cmake that accepts Horovod's files, with one hash for each kind of machine.
CMAKE: dict[str, tuple[str, ...]] = {
    "cmake==3.31.10": (
        "2f766bb46367e5e0559fa33184653754bce044583a06014dcaebf8e6dff8a1f1",  # Linux x86_64
        "a4a5615f31f692c9b9aa8b365704e4b76172348af6fa40e16fea3f118bb01194",  # Linux aarch64
        "a7864605238759a4ae8e3bd1fda2bb03978e3e37df310852662dcf53866413c8",  # Linux ppc64le
        "1debc3a0823ce5d8d1bc17154599bbbb337c2681f93622b618bc78f46576e42a",  # Linux s390x
        "8d2ec5fc45d305227020c82213140a51a0cebe3c84f0299036f05716b3a52f60",  # Linux i686
        "678fc23db37cc69f01e18eb28790450ecc9401fd2fcd43364cc18f92330c12c2",  # Linux x86_64 with musl
        "c2e5361dea9754ed3b06cf834894fb47dcbe7036d5e5d87acaeb10ff3dd5fd10",  # Linux aarch64 with musl
        "ad697643a00d9ba85179590a383c4f7401169b55ebf4b8b2938daf28c6bdeb6d",  # macOS
    )
}


def pinned_options(pins: Mapping[str, tuple[str, ...]], folder: Path) -> tuple[str, ...]:
    """Write requirements with hashes to an existing folder, and return options that make pip install nothing else."""
    # `pins` maps exact requirements to the SHA-256 hashes of the files that may satisfy them. pip rejects files with
    # other hashes, and installs no dependencies.
    lines = [" ".join([pin, *(f"--hash=sha256:{digest}" for digest in digests)]) for pin, digests in pins.items()]
    file = folder / f"{next(iter(pins)).split('==')[0]}-requirements.txt"
    file.write_text("\n".join(lines) + "\n")
    return "--no-deps", "--require-hashes", "--requirement", str(file)
