"""Switch between the heap as the system gives it and one that keeps freed memory, within one
process.
"""

import ctypes

from medgan_nb.core.device import retain_heap


def heap(kept):
    """Keep freed memory in the process, or give it back as glibc does once its thresholds have
    adapted to large blocks.
    """
    if kept:
        retain_heap()
    else:
        libc = ctypes.CDLL(None)
        (
            libc.mallopt(-4, 65536),
            libc.mallopt(-3, 32 << 20),
            libc.mallopt(-1, 64 << 20),
            libc.malloc_trim(0),
        )
