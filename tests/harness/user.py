"""Doing something as a user without privileges, also when the tests run as root."""

import contextlib
import os

NOBODY = 65534


@contextlib.contextmanager
def unprivileged():
    """The block runs with the rights of ``nobody`` if this process is root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
