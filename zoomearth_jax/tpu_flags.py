"""Settings of the TPU compiler that training programs want."""

from __future__ import annotations

import os

# A product with gathered weights otherwise becomes a ring of products with thin slices of them: 80 to 128 wide at fsdp 16, which
# by the compiler's own count of cycles takes 1.4 times as long as gathering a layer's weights at once, beside the layer before.
FLAGS = ("--xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000",)


def set_tpu_flags() -> None:
    """Adds them to LIBTPU_INIT_ARGS, which libtpu reads when it starts; what is set there already stays."""
    given = os.environ.get("LIBTPU_INIT_ARGS", "")
    missing = [flag for flag in FLAGS if flag.partition("=")[0] not in given]
    os.environ["LIBTPU_INIT_ARGS"] = " ".join([*given.split(), *missing])
