"""What the process asks of glibc's allocator and of Python's garbage collector.

Not malloc_trim(3): it stops everything for 50 ms where 250 MB are in pieces.
"""

from __future__ import annotations

import ctypes
import gc

_M_MMAP_THRESHOLD = -3
_OWN_PAGES_BYTES = 1 << 20

_libc = ctypes.CDLL(None)


def spare_the_heap() -> None:
    """Keep large blocks out of the heap, where they leave holes.

    glibc's threshold for giving a block pages of its own rises with the first large one that is
    freed (mallopt(3)), and from then on windows of decoders, some MB each, lie among what lives for
    long. Below this one stay the buffers of TLS, which come and go with every read. Another C
    library is left alone.
    """
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_MMAP_THRESHOLD, _OWN_PAGES_BYTES)


def spare_the_collector() -> None:
    """What exists now lives as long as the process: the garbage collector need not walk it again.

    Exchanges and connections free themselves by reference counts, so that it also need not run
    every 700 objects.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
