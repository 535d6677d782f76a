"""Rows: the builder, packing, the loader and its workers."""
