from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.client.fake_cluster import FakeCluster
from tests.unit.client.session_driver import Driver


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with FakeCluster() as cluster:
        yield cluster


@pytest.fixture
def three() -> Iterator[FakeCluster]:
    with FakeCluster(3) as cluster:
        yield cluster


@pytest.fixture
def driver() -> Driver:
    return Driver()


@pytest.fixture
def ready() -> Driver:
    driver = Driver()
    driver.hellos()
    driver.register()
    return driver
