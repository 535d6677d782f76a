"""Thousands of ill-meant requests: no failure of the server, no growth of its memory, nothing read but what was sent."""

import json
import os
import sys
from pathlib import Path

import pytest

from tests.serving.fuzz import SECRET, Fuzzer
from zoomearth_jax.bench.serve import running

REQUESTS = int(os.environ.get("ZOOMEARTH_FUZZ", "10000"))


def resident_mb(pid: int) -> float:
    """Memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1e3


@pytest.mark.slow
def test_ill_meant_requests(tmp_path):
    pytest.importorskip("schemathesis")
    root, secret = tmp_path / "root", tmp_path / "secret.txt"
    root.mkdir()
    secret.write_text(SECRET)
    with running("nano-grpo", "--root", str(root), "--limits.seconds", "60") as server:
        found = fuzzed(server.port, server.pid, secret, REQUESTS)
        print(json.dumps(found), file=sys.stderr)
    assert not found["failures"], found["failures"][:5]
    assert found["grown_mb"] < 200


def fuzzed(port: int, pid: int, secret: Path, count: int) -> dict:
    """Sends so many requests, half of them by the schema. The memory is compared with that after the first third."""
    fuzzer = Fuzzer(f"http://127.0.0.1:{port}", 0, secret)
    try:
        fuzzer.random_bodies(count // 6)
        fuzzer.by_schema(count // 6)
        before = resident_mb(pid)
        fuzzer.seed, sizes = 1000, [before]
        for _ in range(4):
            fuzzer.random_bodies(count // 12)
            fuzzer.by_schema(count // 12)
            fuzzer.seed += 1000
            sizes.append(resident_mb(pid))
        health = fuzzer.client.get("/metrics").text
    finally:
        fuzzer.close()
    assert "zoomearth_rows_busy 0.0" in health
    assert "zoomearth_memory_bytes 0.0" in health
    total = sum(fuzzer.statuses.values())
    statuses = {str(status): number for status, number in sorted(fuzzer.statuses.items())}
    sizes = [round(size) for size in sizes]
    return {
        "requests": total,
        "statuses": statuses,
        "resident_mb": sizes,
        "grown_mb": sizes[-1] - sizes[0],
        "failures": fuzzer.failures,
    }
