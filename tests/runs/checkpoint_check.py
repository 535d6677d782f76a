"""Run by tests/runs/test_checkpoints.py in processes of their own, since the number of devices is fixed when JAX starts.

checkpoint_check.py save OUT ADDRESS I   process I of 2: saves steps 1 and 2 from one mesh; damages 2; restores
checkpoint_check.py restore OUT          on 2 devices: restores the newest step onto both and onto one
"""

import contextlib
import io
import json
import sys
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.models.sharding import make_mesh
from zoomearth_jax.rl.state import TrainState
from zoomearth_jax.runs.checkpoints import Checkpoints, about_run


def state(mesh, value):
    """Arrays that are cut along fsdp and along both axes, and whole ones; all follow from the value."""

    def put(x, *axes):
        return jax.make_array_from_callback(x.shape, NamedSharding(mesh, PartitionSpec(*axes)), lambda index: x[index])

    x = np.random.default_rng(value).standard_normal((160, 240)).astype(np.float32)
    step = put(np.int32(value))
    return TrainState(
        {"w": put(x, "fsdp", "tensor")},
        {"f": put(x[0])},
        {"m": put(x * 2, None, "fsdp")},
        step,
        {"w": put(x * 3, "fsdp")},
    )


def equal(a, b):
    same = jax.jit(lambda a, b: jax.tree.reduce(lambda x, y: x & y, jax.tree.map(lambda x, y: (x == y).all(), a, b)))
    laid_out = all(x.sharding == y.sharding for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    return bool(same(a, b)) and laid_out


def restore(mesh, out, about=None):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), Checkpoints(out, run=about) as checkpoints:
        found = checkpoints.restore(state(mesh, 0))
    warnings = said.getvalue().count("warning: ")  # on a busy machine tensorstore may print tracebacks beside them
    return {"restored": int(found.step), "equal": equal(found, state(mesh, int(found.step)))}, warnings


def save(out, address, process):
    jax.distributed.initialize(address, num_processes=2, process_id=process)
    mesh = make_mesh((1, 4, 2))
    about = about_run(ComputeConfig(), {}, reference=state(mesh, 7).trainable)
    with Checkpoints(out, run=about) as checkpoints:
        checkpoints.save(1, state(mesh, 1))
        checkpoints.save(2, state(mesh, 2))
    if process == 1:  # what this process has written, and will read
        data = max(
            (Path(out) / "checkpoints" / "2" / "training").rglob("ocdbt.process_1/d/*"), key=lambda f: f.stat().st_size
        )
        data.write_bytes(data.read_bytes()[:20])
    multihost_utils.sync_global_devices("damaged")
    found, warned = restore(mesh, out, about)
    print(json.dumps(found | {"warned": warned}))


if __name__ == "__main__":
    if sys.argv[1] == "save":
        save(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        about = about_run(
            ComputeConfig(), {}, reference=state(make_mesh((1, 2, 1)), 7).trainable
        )  # the same on any mesh
        meshes = [make_mesh((1, 2, 1)), make_mesh((1, 1, 1), jax.devices()[:1])]
        print(json.dumps([restore(mesh, sys.argv[2], about)[0] for mesh in meshes]))
