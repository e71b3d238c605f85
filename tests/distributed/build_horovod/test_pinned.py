"""The hashes of the downloads."""

from tfopt.distributed.build_horovod import pinned


def test_every_file_that_the_build_downloads_has_a_hash():
    pins = pinned.SOURCE | pinned.BUILD_TOOLS | pinned.CMAKE
    assert all(digests and all(len(bytes.fromhex(digest)) == 32 for digest in digests) for digests in pins.values())
    assert all("==" in requirement for requirement in pins)
