"""Run by test_cost.py with 8 simulated devices: costs of sharded products, and what they are by hand, as JSON."""

import json

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from zoomearth_jax.hardware.chips import Chip
from zoomearth_jax.models.sharding import make_mesh
from zoomearth_jax.plan.cost import Network, Player
from zoomearth_jax.plan.hlo import parse

N = 64
MESH = make_mesh((2, 4, 1))


def on(*axes):
    return NamedSharding(MESH, PartitionSpec(*axes))


def cost(function, out, *args):
    compiled = jax.jit(function, out_shardings=out).lower(*args).compile()
    found = Player(parse(compiled.as_text()), Network(Chip("test", 1e9, 1, 1e9, 1e9, 1, 1e9), jax.devices())).play()
    return found.flops, {kind: list(pair) for kind, pair in found.collectives.items()}


def array(sharding, *shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)


def loop(x, stack):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack)[0]


rows, whole = on(("data", "fsdp")), on()
product, square = 2 * N**3, N * N * 4
print(
    json.dumps(
        {
            "gathered": (
                *cost(jnp.matmul, rows, array(rows, 8 * N, N), array(on("fsdp"), N, N)),
                product,
                {"all-gather": [1, square * 3 / 4]},
            ),
            "summed": (
                *cost(lambda x: x.T @ x, whole, array(rows, 8 * N, N)),
                product,
                {"all-reduce": [1, 2 * square * 7 / 8]},
            ),
            "in_a_loop": (
                *cost(loop, rows, array(rows, 8 * N, N), array(on(None, "fsdp"), 5, N, N)),
                5 * product,
                {"all-gather": [5, 5 * square * 3 / 4]},
            ),
        }
    )
)
