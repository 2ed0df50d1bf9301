"""Keeping freed memory in the process, so that each step need not ask the system for it anew.

glibc gives large blocks back at once, and gets them again page by page, zeroed, in the next
layer: 5 to 10 % of a step on a CPU. tcmalloc, where it is preloaded, keeps them by itself.
"""

from __future__ import annotations

import ctypes

# malloc.h; a larger M_MMAP_THRESHOLD would be the milder way, but glibc takes none above 32 MiB.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_NEVER = (1 << 31) - 1


def keep_freed_memory() -> bool:
    """Let malloc serve all blocks from memory that it keeps; False without glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False  # another C library
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _NEVER))
