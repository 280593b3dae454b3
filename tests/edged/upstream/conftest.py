"""Fixtures shared by the tests of connections to upstreams."""

import pytest

from tests.harness.h3 import Certificates


@pytest.fixture(scope="module")
def certificates():
    return Certificates()
