"""One Ray for all tests of this package that drive sweeps from their own process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tiny import settings_in

from orchestrator.cluster.session import cluster
from orchestrator.settings import Settings


@pytest.fixture(scope="package")
def ray_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings that the tests share, and a Ray of this machine that is connected until the last of them."""
    settings = settings_in(tmp_path_factory.mktemp("ray"))
    with cluster(settings):
        yield settings
