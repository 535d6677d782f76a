"""Inputs for tiny models: rows with two, one and no images, padded either way. Needs no torch."""

import numpy as np

IMAGE, VIDEO, START, END = 90, 91, 92, 93
VOCAB = 96
# rows of two images, one image, and none; grids that are square, oblong, and not a multiple of the 4 x 4 patch window
ROWS = (((8, 6), (4, 4)), ((10, 14),), ())


def batch(side: str, seed=0):
    """ids, mask, pixels and grids of ROWS, padded left or right."""
    rng = np.random.default_rng(seed)
    rows = []
    for grids in ROWS:
        row = rng.integers(2, 90, 3).tolist()
        for h, w in grids:
            row += [START, *[IMAGE] * (h * w // 4), END, *rng.integers(2, 90, 3).tolist()]
        rows.append(row + rng.integers(2, 90, 2).tolist())
    length = max(map(len, rows))
    ids, mask = np.zeros((len(rows), length), np.int64), np.zeros((len(rows), length), np.int64)
    for i, row in enumerate(rows):
        place = slice(length - len(row), length) if side == "left" else slice(0, len(row))
        ids[i, place], mask[i, place] = row, 1
    grids = np.array([[1, h, w] for row in ROWS for h, w in row])
    pixels = rng.normal(size=(grids.prod(-1).sum(), 1176)).astype(np.float32)
    return ids, mask, pixels, grids
