"""A real object store for the tests that go through every door."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dropoff.servers import S3Server, s3_server, weed_program


@pytest.fixture(scope="module", name="s3_server")
def _s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    program = weed_program()
    if program is None:
        pytest.skip("SeaweedFS (weed) is not installed")
    with s3_server(tmp_path_factory.mktemp("weed"), program) as server:
        yield server
