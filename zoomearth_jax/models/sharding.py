"""One table from logical axes to mesh axes, and what follows from it.

The trainer's mesh is (data, fsdp, tensor). The sampler may lay the same devices out as (data, weights): groups of consecutive
devices that share out the weights, while rows and their caches are spread over all devices (`sampler_mesh`).

Parameters name their logical axes where they are made (`layers.Linear`); activations are constrained by the same names.
Without a mesh in context (`jax.set_mesh`) nothing here does anything.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from zoomearth_jax.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")
SAMPLER_AXES = ("data", "weights")

RULES: dict[str | None, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),  # rows and images; in the sampler's layout states are the same on a group's devices
    "rows": ("data", "fsdp", "weights"),  # rows of caches, and of attention to them
    "group": ("data",),  # rows that an fsdp group's devices have together
    "embed": ("fsdp",),  # model width of parameters
    "heads": ("tensor", "weights"),
    "kv_heads": ("weights",),  # 2 key-value heads: replicated under tensor parallelism
    "attended": ("tensor",),  # heads, as the output projection takes them: the sampler's devices have all of them
    "mixed": ("fsdp", "weights"),  # model width, as the output projection gives it
    "qkv": (),  # the vision encoder's fused projection: a slice of it would cut across q, k and v
    "mlp": ("tensor", "weights"),
    "vocab": ("tensor", "weights"),
    "columns": ("weights",),  # parts of activations that a group's devices share out
    None: (),
}


def make_mesh(shape: Sequence[int], devices=None) -> Mesh:
    """A mesh of the given sizes along (data, fsdp, tensor), over the first devices of all; only data spans TPU slices."""
    devices = (jax.devices() if devices is None else devices)[: math.prod(shape)]
    slices = num_slices(devices)
    # not every size is that of whole dimensions of a torus
    how = {"devices": devices, "allow_split_physical_axes": True}
    if slices == 1:
        grid = mesh_utils.create_device_mesh(tuple(shape), **how)
    else:
        grid = mesh_utils.create_hybrid_device_mesh((shape[0] // slices, *shape[1:]), (slices, 1, 1), **how)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def sampler_mesh(mesh: Mesh, size: int) -> Mesh:
    """The same devices in the same order, groups of `size` of them along weights."""
    return Mesh(mesh.devices.reshape(-1, size), SAMPLER_AXES, axis_types=(AxisType.Auto,) * 2)


def uneven_weights(params, size: int) -> str:
    """The first parameter that a sampler's group of so many devices can't share out evenly; empty where there is none."""
    for path, x in nnx.to_flat_state(params):
        for axis, length in zip(reversed(_axes(x)), reversed(x.shape), strict=False):
            if path[0] != "vision" and "weights" in RULES[axis] and length % size:
                return f"{'.'.join(map(str, path))}, {length} wide,"
    return ""


def num_slices(devices) -> int:
    """Slices of a TPU system, which a slower network joins; 1 elsewhere."""
    return len({getattr(device, "slice_index", 0) for device in devices})


def partition_spec(
    axes: Sequence[str | None], shape: Sequence[int], mesh, without: tuple[str, ...] = ()
) -> PartitionSpec:
    """Where an array's dimensions go; a dimension that its mesh axes don't divide evenly stays whole.

    Inside `on_own_rows` the axes that the rows lie along are left out: each device sees its own part already.

    Args:
        axes: logical axes of the trailing dimensions; leading ones (a stack of layers) stay whole.
        shape: the array's shape.
        mesh: a concrete or an abstract mesh.
        without: mesh axes to leave out.
    """
    axes = (*[None] * (len(shape) - len(axes)), *axes)
    kinds = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
    sizes = {name: size for name, size, kind in kinds if kind != AxisType.Manual and name not in without}
    parts = []
    for axis, size in zip(axes, shape, strict=True):
        names = tuple(name for name in RULES[axis] if sizes.get(name, 1) > 1)
        fits = names and size % int(np.prod([sizes[name] for name in names])) == 0
        parts.append((names if len(names) > 1 else names[0]) if fits else None)
    return PartitionSpec(*parts)


def constrain(x, *axes: str | None):
    """Pins an activation's layout on the mesh in context; without one, x as it is."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(axes, x.shape, mesh))


def constrain_sampler(x, *axes: str | None):
    """Pins an activation's layout where the mesh in context is a sampler's; elsewhere x as it is."""
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty or "weights" not in mesh.axis_names else constrain(x, *axes)


def weight_shards(columns: int) -> int:
    """Equal parts in which the devices of a sampler's mesh in context share out so many columns; 1 elsewhere."""
    mesh = jax.sharding.get_abstract_mesh()
    shards = 1 if mesh.empty else mesh.shape.get("weights", 1)
    return shards if columns % shards == 0 else 1


def rows_of_columns(*columns_BTC):
    """Takes activations whose columns the sampler's devices share out to where their rows are, all in one exchange.

    On other meshes they stay as they are.
    """
    mesh = jax.sharding.get_abstract_mesh()
    shards = 1 if mesh.empty else mesh.shape.get("weights", 1)
    if shards == 1:
        return columns_BTC
    if any(x.shape[-1] % shards for x in columns_BTC):
        return tuple(constrain(x, "rows", None, None) for x in columns_BTC)
    parts = [x.reshape(*x.shape[:-1], shards, -1) for x in columns_BTC]
    joined = constrain(jnp.concatenate(parts, axis=-1), "batch", None, "columns", None)
    joined = constrain(joined, "rows", None, None, None)
    ends = np.cumsum([x.shape[-1] for x in parts])[:-1].tolist()
    return tuple(part.reshape(x.shape) for part, x in zip(jnp.split(joined, ends, axis=-1), columns_BTC, strict=True))


def on_whole_rows(function, *rows_BV):
    """A function of rows, run by each device on whole rows of its own: XLA would bring all rows together to sort them.

    Args:
        rows_BV: [B, V] each, or None.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return function(*rows_BV)
    spec = partition_spec(("rows", None), rows_BV[0].shape, mesh)
    return jax.shard_map(function, in_specs=(spec,) * len(rows_BV), out_specs=spec)(*rows_BV)


def row_axes(x) -> tuple[str | None, ...]:
    """Logical axes of a rollout's arrays: rows come first, but in keys and values [L, B, K, S, H]."""
    return tuple("rows" if dim == (x.ndim == 5) else None for dim in range(x.ndim))


def move_rows_to(mesh: Mesh | None, tree):
    """A tree of a rollout's arrays, laid out on another mesh of the same devices; as it is without one.

    Where a device keeps its rows nothing is copied.
    """
    if mesh is None:
        return tree

    def one(x):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):  # of several processes only plain arrays can be put elsewhere
            return jax.random.wrap_key_data(one(jax.random.key_data(x)), impl=jax.random.key_impl(x))
        return jax.device_put(x, NamedSharding(mesh, partition_spec(row_axes(x), x.shape, mesh)))

    return jax.tree.map(one, tree)


def row_shards(rows: int, mesh=None) -> int:
    """Equal parts in which a mesh, by default that in context, holds so many rows."""
    mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    spec = None if mesh.empty else partition_spec(("rows",), (rows,), mesh)[0]
    names = (spec,) if isinstance(spec, str) else spec or ()
    return int(np.prod([mesh.shape[name] for name in names], dtype=int))


def num_devices() -> int:
    """Devices of the mesh in context; 1 without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.size


def _is_variable(x) -> bool:
    return isinstance(x, nnx.Variable)


def _axes(variable: nnx.Variable) -> tuple[str | None, ...]:
    return variable.get_metadata().get("axes", ())


def param_shardings(state, mesh: Mesh):
    """The shardings of a tree of (possibly abstract) parameters, or of an optimizer's state made from them, in the same
    tree: each parameter's moments lie where it does, and what is no parameter is everywhere."""

    def one(x):
        if _is_variable(x):
            place = functools.partial(partition_spec, _axes(x), mesh=mesh)
            return x.replace(jax.tree.map(lambda leaf: NamedSharding(mesh, place(leaf.shape)), x.get_value()))
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree.map(one, state, is_leaf=_is_variable)


def constrain_params(state):
    """Pins parameters, gradients or an optimizer's state as `param_shardings` lays them out, on the mesh in context."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return state

    def one(x):
        spec = partition_spec(_axes(x), x.shape, mesh) if _is_variable(x) else PartitionSpec()
        return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, spec), x)

    return jax.tree.map(one, state, is_leaf=_is_variable)


def share_out_params(params):
    """Lays parameters out on the sampler's mesh in context: first a part on each device, then what a group's devices need.

    XLA would otherwise gather whole parameters on the way where a group is not as large as fsdp.
    """
    mesh = jax.sharding.get_abstract_mesh()

    def one(axes, value):
        spec = partition_spec(axes, value.shape, mesh)
        parts = [
            ("weights", "data") if part == "weights" and length % mesh.size == 0 else part
            for part, length in zip(spec, value.shape, strict=True)
        ]
        for layout in (PartitionSpec(*parts), spec):
            value = jax.lax.with_sharding_constraint(value, layout)
        return value

    def both(x):  # an int8 kernel is two arrays
        return x.replace(jax.tree.map(functools.partial(one, _axes(x)), x.get_value()))

    return jax.tree.map(both, params, is_leaf=_is_variable)


def cast_kernels(params, dtype, gather: bool = False):
    """Weights that products use (embeddings, kernels) in the compute type, where that is the smaller one.

    The model would convert them at every use. Norms' scales and biases stay as they are.

    Args:
        gather: whole along fsdp too, on the mesh in context: gathered once instead of once per use.
    """
    mesh = jax.sharding.get_abstract_mesh()

    def one(x):
        if not {"embed", "mixed"} & set(_axes(x)):
            return x
        value = x[...]
        if jnp.dtype(dtype).itemsize < value.dtype.itemsize:
            value = value.astype(dtype)
        if gather and not mesh.empty:
            spec = partition_spec(_axes(x), value.shape, mesh, without=("fsdp",))
            value = jax.lax.with_sharding_constraint(value, spec)
        return x.replace(value)

    return jax.tree.map(one, params, is_leaf=_is_variable)


def on_own_rows(function, params, *rows):
    """function(params, *rows) on each device's own rows, where the mesh in context shards them.

    The parameters are gathered whole along fsdp, once, and their gradient is added up over the devices once, however often the
    function uses them: the compiler would do both at each use. Along tensor they stay as they are.

    Args:
        function: gives a tree of arrays whose first dimension is the rows'.
        params: a tree of parameters, in the type in which they should travel.
        rows: arrays of equally many rows.
    """
    mesh = jax.sharding.get_abstract_mesh()
    row_spec = PartitionSpec() if mesh.empty else partition_spec(("batch",), rows[0].shape[:1], mesh)
    axes = {axis for axis in RULES["batch"] if axis in jax.tree.leaves(tuple(row_spec))}
    if not axes:
        return function(params, *rows)
    specs = jax.tree.map(
        lambda x: partition_spec(_axes(x), x.shape, mesh, without=("tensor",)), params, is_leaf=_is_variable
    )

    def gathered(x, spec):
        cut = {axis: dim for dim, axis in enumerate(spec) if axis}
        value = jax.lax.pcast(x[...], tuple(axes - set(cut)), to="varying")
        for axis, dim in cut.items():
            value = jax.lax.all_gather(value, axis, axis=dim, tiled=True)
        return x.replace(value)

    def own(params, *rows):
        return function(jax.tree.map(gathered, params, specs, is_leaf=_is_variable), *rows)

    return jax.shard_map(
        own, in_specs=(specs, *[row_spec] * len(rows)), out_specs=row_spec, axis_names=axes, mesh=mesh
    )(params, *rows)


def process_share(mesh: Mesh | None) -> tuple[int, int]:
    """(which, of how many) equal stretches of a batch's rows this process makes and holds.

    Processes that differ only along tensor hold the same rows.

    Raises:
        UserError: processes whose rows overlap in part.
    """
    if mesh is None:
        return 0, 1
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    rows: Mapping[Any, Any] = NamedSharding(mesh, PartitionSpec(("data", "fsdp"))).devices_indices_map((shards,))
    held: dict[int, set[int]] = {process: set() for process in range(jax.process_count())}
    for device, (stretch,) in rows.items():
        held[device.process_index].add(stretch.indices(shards)[0])
    stretches = sorted({tuple(sorted(own)) for own in held.values()})
    if sum(map(len, stretches)) != shards:
        raise UserError("mesh config: tensor groups overlap processes in part; choose another tensor size")
    return stretches.index(tuple(sorted(held[jax.process_index()]))), len(stretches)


def shard_batch(batch, mesh: Mesh | None):
    """Puts this process's rows of a batch, a tree of arrays, onto the mesh: first dimension along data and fsdp.

    What is on devices already stays as it is. Without a mesh everything goes to the default device.
    """
    if mesh is None:
        return jax.device_put(batch)
    single = jax.process_count() == 1
    stretches = 1 if single else process_share(mesh)[1]

    def put(x):
        if isinstance(x, jax.Array):
            return x
        shape = (x.shape[0] * stretches, *x.shape[1:])
        sharding = NamedSharding(mesh, partition_spec(("batch", *[None] * (x.ndim - 1)), shape, mesh))
        if single:
            return jax.device_put(x, sharding)
        return jax.make_array_from_process_local_data(sharding, x, shape)

    return jax.tree.map(put, batch)


def local_rows(tree):
    """This process's rows of arrays that `shard_batch` would lay out so, as NumPy arrays, in their order."""

    def one(x):
        if x.is_fully_addressable:
            return np.asarray(x)
        shards = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
        return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])

    for x in jax.tree.leaves(tree):
        x.copy_to_host_async()
    return jax.tree.map(one, tree)
