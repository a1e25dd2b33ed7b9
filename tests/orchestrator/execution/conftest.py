"""A Ray for tests that drive sweeps from their own process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tiny import settings_in

from orchestrator.cluster.session import cluster
from orchestrator.settings import Settings


@pytest.fixture(scope="module")
def ray_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings that the tests of one file share, and a Ray of this machine that is connected while they run.

    No longer: other files look at what happens without one.
    """
    settings = settings_in(tmp_path_factory.mktemp("ray"))
    with cluster(settings):
        yield settings
