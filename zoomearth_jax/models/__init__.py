"""Qwen2.5-VL in Flax NNX.

Shape suffixes, used in names and einsum strings throughout the package:

    B batch rows      T query tokens     S key slots        D width        V vocabulary
    N query heads     K key-value heads  H head width       F MLP width    L layers
    I images          P patches          M merged tokens    W windows      G rows per group
    C channels

A suffix names logical dimensions, never shardings.
"""
