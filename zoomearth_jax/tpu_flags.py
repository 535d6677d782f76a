"""Settings of the TPU compiler that training programs want."""

from __future__ import annotations

import os

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
