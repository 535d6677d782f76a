"""What known accelerators can do, by the name that jax gives them.

Peak bf16 FLOP/s, HBM size and HBM bandwidth are the makers' (docs.cloud.google.com/tpu/docs/v5e, v5p, v6e; data sheets of
NVIDIA's A100, H100, H200). Of a TPU's HBM we count what its compiler gives a program, as its out-of-memory message states it.
Links of TPUs are those of "How to Scale Your Model" (jax-ml.github.io/scaling-book/tpus), 10 % under the makers' figures.

Latencies are orders of magnitude, not measurements. A hop from chip to chip of a TPU takes about 1 us ("How to Scale Your Model",
chapters on TPUs and on sharded matrices, where a collective of less than 45 kB a hop is bound by it). NVLink's is what NCCL
needs for the smallest messages within a host, some 10 us for an all-reduce, which counts two hops. A message between slices or
hosts crosses a data centre's switches and two network cards: 20 us.
"""

from __future__ import annotations

from typing import NamedTuple

GIB = 2**30


class Chip(NamedTuple):
    """One device, as jax counts them.

    Attributes:
        name: short name.
        peak_flops: bf16 FLOP/s, without sparsity.
        hbm_bytes: memory for a program and its data.
        hbm_bandwidth: bytes/s.
        link_bandwidth: bytes/s of one link in one direction.
        links: to other chips: two for each dimension of a TPU's torus.
        network_bandwidth: bytes/s of one chip between slices or hosts, in one direction.
        wraps: chips along a dimension of the torus, a multiple of which closes to a ring; 0 where links reach every chip.
        clock: cycles/s by which XLA's counts of cycles become seconds; 0 where it prints none. At these its count of a product of
            4096 x 4096 matrices is 3, 4 and 15 % over what the peak allows.
        hop_seconds: latency of one hop of a collective: to a neighbour in the torus, or through NVLink to any device of the host.
        network_seconds: latency of a hop between slices or hosts.
    """

    name: str
    peak_flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    link_bandwidth: float
    links: int
    network_bandwidth: float
    wraps: int = 0
    clock: float = 0.0
    hop_seconds: float = 0.0
    network_seconds: float = 0.0


# device_kind -> Chip
CHIPS = {
    "TPU v5 lite": Chip("v5e", 197e12, 15.75 * GIB, 8.19e11, 4.5e10, 4, 3.1e9, 16, 1.5e9, 1e-6, 2e-5),
    "TPU v5": Chip("v5p", 459e12, 95.73 * GIB, 2.765e12, 9e10, 6, 6.2e9, 4, 1.75e9, 1e-6, 2e-5),
    "TPU v6 lite": Chip("v6e", 918e12, 31.24 * GIB, 1.638e12, 9e10, 4, 1.25e10, 16, 1.75e9, 1e-6, 2e-5),
    "NVIDIA A100-SXM4-40GB": Chip(
        "a100-40", 312e12, 39.4 * GIB, 1.555e12, 3e11, 1, 2.5e10, hop_seconds=5e-6, network_seconds=2e-5
    ),
    "NVIDIA A100-SXM4-80GB": Chip(
        "a100-80", 312e12, 79.1 * GIB, 2.039e12, 3e11, 1, 2.5e10, hop_seconds=5e-6, network_seconds=2e-5
    ),
    "NVIDIA H100 80GB HBM3": Chip(
        "h100", 989e12, 79.1 * GIB, 3.35e12, 4.5e11, 1, 5e10, hop_seconds=5e-6, network_seconds=2e-5
    ),
    "NVIDIA H200": Chip("h200", 989e12, 139.8 * GIB, 4.8e12, 4.5e11, 1, 5e10, hop_seconds=5e-6, network_seconds=2e-5),
}


def chip(device_kind: str) -> Chip | None:
    """The chip of `jax.Device.device_kind`; None for one that isn't known, such as a CPU."""
    return CHIPS.get(device_kind)
