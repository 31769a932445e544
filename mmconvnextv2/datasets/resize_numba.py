"""The passes of Pillow's resizing, compiled by numba; imported by ``resize.find_kernels`` where numba is installed."""

import numpy as np
from numba import njit

HALF = np.int32(1 << 21)  # of the last bit that stays
ZERO, MOST = np.int32(0), np.int32(255)


@njit('Tuple((int64[::1], int64[::1], int32[:, ::1]))(int64, float64, float64, int64)', cache=True)
def weights(size, start, stop, count):
    """Return the first pixel, the number of pixels and their weights, by output pixel.

    Keys' cubic with a = -0.5, stretched by the scale where an image shrinks (antialias).
    """
    scale = np.float64(np.float32(stop) - np.float32(start)) / count  # as Pillow, whose boxes are float32
    stretch = max(scale, 1.0)
    support = 2.0 * stretch
    most = int(np.ceil(support)) * 2 + 1
    first, number = np.empty(count, np.int64), np.empty(count, np.int64)
    values = np.zeros((count, most), np.int32)
    row = np.empty(most, np.float64)
    inverse = 1.0 / stretch
    for i in range(count):
        centre = start + (i + 0.5) * scale
        low = max(int(centre - support + 0.5), 0)
        high = min(int(centre + support + 0.5), size)
        total = 0.0
        for k in range(high - low):
            x = abs((k + low - centre + 0.5) * inverse)
            if x < 1.0:
                row[k] = (1.5 * x - 2.5) * x * x + 1
            elif x < 2.0:
                row[k] = (((x - 5) * x + 8) * x - 4) * -0.5
            else:
                row[k] = 0.0
            total += row[k]
        for k in range(high - low):
            value = (row[k] / total if total != 0 else row[k]) * 4194304.0
            values[i, k] = int(value - 0.5) if value < 0 else int(value + 0.5)
        first[i], number[i] = low, high - low
    return first, number, values


@njit('void(uint8[:, ::1], int64[::1], int64[::1], int32[:, ::1], uint8[:, ::1])', cache=True)
def combine(rows, first, number, values, out):
    """Write weighted sums of rows: ``out[i] = clip(sum over k of values[i, k] * rows[first[i] + k])``.

    The casts keep numba from widening to 64 bits, which halves the speed.
    """
    length = rows.shape[1]
    sums = np.empty(length, np.int32)
    for i in range(out.shape[0]):
        sums[:] = HALF
        k, stop = first[i], first[i] + number[i]
        while k + 1 < stop:
            weight, next_weight = values[i, k - first[i]], values[i, k + 1 - first[i]]
            row, next_row = rows[k], rows[k + 1]
            for j in range(length):
                pair = np.int32(np.int32(weight * np.int32(row[j])) + np.int32(next_weight * np.int32(next_row[j])))
                sums[j] = np.int32(sums[j] + pair)
            k += 2
        if k < stop:
            weight, row = values[i, k - first[i]], rows[k]
            for j in range(length):
                sums[j] = np.int32(sums[j] + np.int32(weight * np.int32(row[j])))
        line = out[i]
        for j in range(length):
            line[j] = np.uint8(min(max(np.int32(sums[j] >> 22), ZERO), MOST))
