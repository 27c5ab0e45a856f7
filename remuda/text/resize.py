"""Antialiased bilinear resize of uint8 images, bit for bit as torch computes it (numpy only).

torch resizes uint8 images in fixed point: per axis (columns first, then rows) the triangle filter's float64 weights are
normalised, scaled to int16 with as many fraction bits as the largest of them allows, summed in int32 and rounded back
to uint8. Pillow does the same with 22 fraction bits and so differs by one level here and there; a model's greedy
answer can turn on that, hence the exact version.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
_BLOCK_BYTES = 1 << 20  # accumulate in pieces that stay in the processor's cache


def resize_bilinear(image_HWC: U8, height: int, width: int) -> U8:
    """uint8 [H, W, C] -> uint8 [height, width, C]."""
    if image_HWC.shape[1] != width:
        # The axis to resize goes first so that every tap reads whole contiguous rows.
        image_HWC = _resize_first_axis(image_HWC.transpose(1, 0, 2), width).transpose(1, 0, 2)
    if image_HWC.shape[0] != height:
        image_HWC = _resize_first_axis(image_HWC, height)
    return np.ascontiguousarray(image_HWC)


def _resize_first_axis(image: U8, size: int) -> U8:
    first, weights_OT, precision = _taps(image.shape[0], size)
    rows = np.ascontiguousarray(image).reshape(image.shape[0], -1)
    result = np.empty((size, rows.shape[1]), np.uint8)
    block = max(1, _BLOCK_BYTES // (4 * max(1, rows.shape[1])))
    for start in range(0, size, block):
        stop = min(start + block, size)
        total = np.full((stop - start, rows.shape[1]), 1 << (precision - 1), np.int32)  # rounds half up
        for tap in range(weights_OT.shape[1]):
            source = np.minimum(first[start:stop] + tap, image.shape[0] - 1)  # beyond the edge the weight is 0
            total += rows[source] * weights_OT[start:stop, tap, None]
        total >>= precision
        result[start:stop] = np.clip(total, 0, 255)
    return result.reshape(size, *image.shape[1:])


def _taps(input_size: int, output_size: int) -> tuple[NDArray[np.int64], NDArray[np.int32], int]:
    """Per output position its first input position and the fixed-point weights from there; and the fraction bits."""
    scale = input_size / output_size
    support = max(scale, 1.0)  # half the width of the triangle, in input pixels
    center = scale * (np.arange(output_size) + 0.5)
    first = np.maximum((center - support + 0.5).astype(np.int64), 0)
    count = np.minimum((center + support + 0.5).astype(np.int64), input_size) - first
    taps = np.arange(int(count.max()))
    distance = (taps + first[:, None] - center[:, None] + 0.5) * (1.0 / support)
    weights = np.where(taps < count[:, None], np.maximum(1.0 - np.abs(distance), 0.0), 0.0)
    total = np.zeros(output_size)
    for tap in taps:  # in torch's order: the last bit of a sum depends on it
        total += weights[:, tap]
    weights /= total[:, None]
    precision, largest = 0, float(weights.max())
    while precision < 22 and int(0.5 + largest * (1 << (precision + 1))) < 1 << 15:
        precision += 1
    return first, (weights * (1 << precision) + 0.5).astype(np.int32), precision
