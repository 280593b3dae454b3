"""Everything here but the model needs root and TUN devices."""

import pytest

from tests.netns import lab


def pytest_collection_modifyitems(items):
    reason = lab.missing()
    for item in items:
        if item.get_closest_marker("root") and reason:
            item.add_marker(pytest.mark.skip(reason=f"no namespaces with lines: {reason}"))
