"Malloc tuning: switch between the system's heap and the retained heap within one process."

import ctypes

from medgan_nb.core.memory import retain_heap

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # parameters of mallopt in malloc.h


def heap(retained: bool) -> None:
    """Retain freed memory, or return it to the system.

    The second is what glibc does by default once its thresholds have adapted to large blocks.
    """
    if retained:
        retain_heap()
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_MAX, 65536)
    libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)
    libc.mallopt(M_TRIM_THRESHOLD, 64 << 20)
    libc.malloc_trim(0)
