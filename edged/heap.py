"""What the process asks of glibc's allocator and of Python's garbage collector."""

from __future__ import annotations

import ctypes
import gc

_M_MMAP_THRESHOLD = -3
_OWN_PAGES_BYTES = 1 << 20

TRIM_EVERY_S = 30.0
"""How often it is asked whether pages are to be given back."""
_HOLES_BYTES = 32 << 20
_HOLES_SHARE = 0.4

_libc = ctypes.CDLL(None)


class _Info(ctypes.Structure):
    """``struct mallinfo2`` (mallinfo(3)): the heap, and of it what is in use and what is free."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def spare_the_heap() -> None:
    """Keep large blocks out of the heap, where they leave holes.

    glibc's threshold for giving a block pages of its own rises with the first large one that is
    freed (mallopt(3)), and from then on windows of decoders, some MB each, lie among what lives for
    long. Below this one stay the buffers of TLS, which come and go with every read. Another C
    library is left alone.
    """
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_MMAP_THRESHOLD, _OWN_PAGES_BYTES)


def trim_the_heap() -> bool:
    """Give back the pages in which nothing lives, where those are many (malloc_trim(3)); whether
    they were.

    An outage leaves them: everybody waits, dials and is repeated at once then, and what is still in
    use after that lies among what is not. It stops everything for some ms.
    """
    if not hasattr(_libc, "mallinfo2"):
        return False
    _libc.mallinfo2.restype = _Info
    info = _libc.mallinfo2()
    if info.fordblks < max(_HOLES_BYTES, _HOLES_SHARE * info.arena):
        return False
    _libc.malloc_trim(0)
    return True


def spare_the_collector() -> None:
    """What exists now lives as long as the process: the garbage collector need not walk it again.

    Exchanges and connections free themselves by reference counts, so that it also need not run
    every 700 objects.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
