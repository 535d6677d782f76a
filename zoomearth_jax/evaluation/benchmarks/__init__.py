"""Benchmarks: one adapter per file, with the official rule and a strict one."""
