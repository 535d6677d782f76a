"""Settings of the TPU compiler that training programs want, and whether there are TPUs at all."""

from __future__ import annotations

import os
from pathlib import Path

# A product with gathered weights otherwise becomes a ring of products with thin slices of them: 80 to 128 wide at fsdp 16, which
# by the compiler's own count of cycles takes 1.4 times as long as gathering a layer's weights at once, beside the layer before.
FLAGS = ("--xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000",)
# jaxlib 0.10.2 can't print programs that give copies and gathers to the SparseCores of v5p and v6e, as plan needs them.
OFFLOADED = ("copy", "gather", "reduce", "reshape", "scatter", "slice", "sort", "xprecision")
NO_SPARSE_CORES = (
    *(f"--xla_tpu_enable_offloading_{what}_to_sparsecore=false" for what in OFFLOADED),
    "--xla_tpu_offload_gather_to_sparsecore=false",
    *(
        f"--xla_tpu_enable_sparse_core_collective_offload_{what}=false"
        for what in ("all_gather", "all_reduce", "reduce_scatter", "nd_reduce_scatter")
    ),
)


def set_tpu_flags(more: tuple[str, ...] = ()) -> None:
    """Adds FLAGS and `more` to LIBTPU_INIT_ARGS, which libtpu reads when it starts; what is set there already stays."""
    given = os.environ.get("LIBTPU_INIT_ARGS", "")
    missing = [flag for flag in (*FLAGS, *more) if flag.partition("=")[0] not in given]
    os.environ["LIBTPU_INIT_ARGS"] = " ".join([*given.split(), *missing])


def skip_missing_tpus() -> None:
    """Keeps JAX from starting libtpu where there are no TPUs, as where it is installed only for `plan`.

    It would look for a metadata server for 15 seconds, and complain. As a compiler it goes on working. To be called before
    JAX looks for devices.
    """
    if "JAX_FORCE_TPU_INIT" in os.environ or has_tpus():
        return
    from jax._src import xla_bridge

    getattr(xla_bridge, "_backend_factories", {}).pop("tpu", None)  # jax_platforms would have to name all others


def has_tpus() -> bool:
    """Whether chips are attached: on the PCI bus, as JAX looks for them, or as devices that are handed to a container."""
    from jax._src import hardware_utils

    chips = hardware_utils.num_available_tpu_chips_and_device_id()[0]
    return chips > 0 or any(Path("/dev").glob("accel*")) or any(Path("/dev/vfio").glob("[0-9]*"))
