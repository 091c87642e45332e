"""How often somebody may do something: the last moments of each, in a window that slides."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable

_MOST = 10_000  # different keys remembered; the longest silent is forgotten first


class Rates:
    """Counts per key in sliding windows. Safe in threads; bounded in memory."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: OrderedDict[Hashable, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def wait(self, key: Hashable, most: int, seconds: float) -> float:
        """Take one of `most` turns in `seconds`: 0 when it was free, else seconds until one is (and none is taken)."""
        now = self._clock()
        with self._lock:
            times = self._seen.setdefault(key, deque())
            self._seen.move_to_end(key)
            while times and times[0] <= now - seconds:
                times.popleft()
            if len(times) >= most:
                return times[0] + seconds - now
            times.append(now)
            while len(self._seen) > _MOST:
                self._seen.popitem(last=False)
            return 0.0
