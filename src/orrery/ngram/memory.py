"""What this process occupies, and what of a budget is left to sort in.

Measured on Linux (resident memory, mapped files included, x86_64, Python 3.11): 34 MiB before a build of ids, 92 with numba,
163 with all loops of a build read from numba's cache. Compiling them, once after an installation, leaves 40 to 60 MiB more.
Encoding with the library of subword tokenizers leaves some 80 MiB that it does not give back, most of it its threads'.
"""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from pathlib import Path

LEAST = 196 << 20  # bytes that a process with numba and the loops occupies, and small buffers
_NUMBA = 58 << 20
_LOOPS = 74 << 20
_ENCODING = 84 << 20


def reserve(encoding: bool = False) -> int:
    """Bytes of a budget that are not for sorting: `LEAST`, or more where the process is large already.

    encoding: text is encoded first, by a library.
    """
    return max(started(encoding), occupied() + _LOOPS + (0 if "numba.core" in sys.modules else _NUMBA))


def started(encoding: bool = False) -> int:
    """The same of a process that is started to sort, however large this one is."""
    return LEAST + (_ENCODING if encoding else 0)


def occupied() -> int:
    """Resident bytes of this process; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_bytes().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    import resource

    return pages * resource.getpagesize()


def release() -> None:
    """Hand memory that was freed back to the system, which glibc otherwise keeps: hundreds of megabytes after encoding."""
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
