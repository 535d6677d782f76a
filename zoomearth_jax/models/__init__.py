"""Models in Flax NNX.

Shape suffixes, used in names and einsum strings throughout the package:

    B batch rows      T query tokens     S key slots        D width        V vocabulary
    N query heads     K key-value heads  H head width       F MLP width    L layers
    I images          P patches          M merged tokens    W windows      C values of a patch
    A prompts         G rows per prompt  U prompt slots     R kept slots   Q queries per key-value head

In an array of rows, I and M count the images and merged tokens of one row; a digit is a size. Q is T times the query heads
that share a key-value head, R the slots that `Places` keeps. A suffix names logical dimensions, never shardings.
"""
