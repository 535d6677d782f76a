"""One table from logical axes to the mesh axes (data, fsdp, tensor), and what follows from it.

Parameters name their logical axes where they are made (`layers.Linear`); activations are constrained by the same names.
Without a mesh in context (`jax.set_mesh`) nothing here does anything.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")

RULES: dict[str | None, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),  # rows and images
    "embed": ("fsdp",),  # model width of parameters
    "heads": ("tensor",),
    "kv_heads": (),  # 2 key-value heads: replicated under tensor parallelism
    "qkv": (),  # the vision encoder's fused projection: a slice of it would cut across q, k and v
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    None: (),
}


def make_mesh(shape: Sequence[int], devices=None) -> Mesh:
    """A mesh of the given sizes along (data, fsdp, tensor), over all devices by default."""
    return jax.make_mesh(tuple(shape), MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def partition_spec(axes: Sequence[str | None], shape: Sequence[int], mesh) -> PartitionSpec:
    """Where an array's dimensions go; a dimension that its mesh axes don't divide evenly stays whole.

    Args:
        axes: logical axes of the trailing dimensions; leading ones (a stack of layers) stay whole.
        shape: of the array.
        mesh: concrete or abstract.
    """
    axes = (*[None] * (len(shape) - len(axes)), *axes)
    sizes = dict(zip(mesh.axis_names, mesh.axis_sizes, strict=True))
    parts = []
    for axis, size in zip(axes, shape, strict=True):
        names = tuple(name for name in RULES[axis] if sizes[name] > 1)
        fits = names and size % int(np.prod([sizes[name] for name in names])) == 0
        parts.append((names if len(names) > 1 else names[0]) if fits else None)
    return PartitionSpec(*parts)


def constrain(x, *axes: str | None):
    """Pins an activation's layout on the mesh in context; without one, x as it is."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(axes, x.shape, mesh))


def num_devices() -> int:
    """Devices of the mesh in context; 1 without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.size


def param_shardings(state: nnx.State, mesh: Mesh) -> nnx.State:
    """The shardings of a model's (possibly abstract) parameters, in the same tree."""

    def one(variable: nnx.Variable):
        axes = variable.get_metadata().get("axes", ())
        return variable.replace(NamedSharding(mesh, partition_spec(axes, variable.shape, mesh)))

    return jax.tree.map(one, state, is_leaf=lambda x: isinstance(x, nnx.Variable))


def shard_batch(batch, mesh: Mesh):
    """Puts a tree of host arrays on the mesh, first dimension along data and fsdp."""

    def put(x):
        return jax.device_put(x, NamedSharding(mesh, partition_spec(("batch", *[None] * (x.ndim - 1)), x.shape, mesh)))

    return jax.tree.map(put, batch)
