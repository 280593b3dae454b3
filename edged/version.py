"""Which edged this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("edged")
except PackageNotFoundError:  # run from a copy that was not installed
    VERSION = "unknown"
