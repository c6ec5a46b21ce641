"""TEMPORARY."""

import numpy as np


def create_array(path, shape, dtype=np.uint8):
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
