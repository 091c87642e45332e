"""Keeping large blocks of memory in the process between training steps.

By default glibc returns every block above some megabytes to the system when it is freed and asks for it again at the next
operation; the system then clears it page by page. A training step on a CPU allocates hundreds of such blocks, and an
elementwise operation spends more time on fresh pages than on its numbers. Raising two thresholds keeps the blocks.
Other C libraries (macOS, Windows, musl) have no such switch; nothing happens there.
"""

from __future__ import annotations

import ctypes
import functools
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of glibc's mallopt
KEPT = 1 << 30  # bytes: larger blocks go back to the system at once, and so does a larger rest at the end of the heap


@functools.cache
def keep_large_blocks() -> bool:
    """Keep freed blocks of up to one GiB in this process. Returns whether the C library could be told to.

    Called by everything that trains or measures; a user's own program decides for itself.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, KEPT)) and bool(mallopt(_TRIM_THRESHOLD, KEPT))
