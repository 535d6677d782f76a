"""Where figures come from: hardware, versions, commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

_PACKAGES = ("zoomearth-jax", "jax", "jaxlib", "flax", "numpy", "tokenizers", "transformers", "rasterio", "pyvips")


def surroundings() -> str:
    """Describes where figures come from: device, cores, versions, commit (`-dirty` with uncommitted changes)."""
    on = hardware()
    name = on["device"] if on["platform"] == "cpu" else f"{on['devices']} x {on['device']}"
    loaded = [library for library in ("jax", "torch", "transformers") if library in sys.modules]
    known = ", ".join(f"{library} {importlib.metadata.version(library)}" for library in loaded)
    return f"{name}, {on['cores']} cores, {known}, commit {commit() or 'unknown'}"


def hardware() -> dict[str, Any]:
    """The platform, the kind of device (of CPUs the processor's name), the number of devices, and of cores of this process."""
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "device": _processor() if device.platform == "cpu" else device.device_kind,
        "devices": jax.device_count(),
        "cores": len(os.sched_getaffinity(0)),
    }


def versions() -> dict[str, str]:
    """The versions of the packages that decide figures, as far as they are installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit of the checkout that the package lies in (`-dirty` with uncommitted changes); None where it is in none."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True).stdout.strip() or None
    except OSError:  # no git here
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
