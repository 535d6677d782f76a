"""Where figures come from: hardware, versions, commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

import jax


def surroundings() -> str:
    """Describes where figures come from: device, cores, versions, commit (`-dirty` with uncommitted changes)."""
    device = jax.devices()[0]
    name = _processor() if device.platform == "cpu" else f"{jax.device_count()} x {device.device_kind}"
    loaded = [library for library in ("jax", "torch", "transformers") if library in sys.modules]
    versions = ", ".join(f"{library} {importlib.metadata.version(library)}" for library in loaded)
    root = Path(__file__).parents[2]
    git = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() if (root / ".git").exists() else ""
    return f"{name}, {len(os.sched_getaffinity(0))} cores, {versions}, commit {commit or 'unknown'}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
