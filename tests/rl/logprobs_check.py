"""Run by tests/rl/test_logprobs.py in a process of its own with 8 devices: log-probabilities on meshes.

Prints, for each mesh and each kind of head, how far values and gradients are from those of one device, and the shapes that the
compiled program's collectives send, with whether they are in a loop.
"""

import functools
import json
import math
import re

import jax
import numpy as np

from tests.rl.test_logprobs import KINDS, VOCAB, WIDTH, inputs, make_model, values_and_gradients
from zoomearth_jax.models.sharding import make_mesh, param_shardings, shard_batch

MESHES = (8, 1, 1), (2, 4, 1), (1, 8, 1), (2, 2, 2)
COLLECTIVE = r"= \(?f32\[([\d,]*)\].* (all-gather|all-reduce|reduce-scatter)\("


def table_collectives(text: str) -> int:
    """Collectives that give a whole table, or a shard of it along the width, one on this mesh for each."""
    sizes = [math.prod(map(int, dims.split(","))) for dims, _ in re.findall(COLLECTIVE, text) if dims]
    return sum(size >= VOCAB * WIDTH // 8 for size in sizes)


def main():
    results = {}
    for kind in KINDS:
        graph, params = make_model(kind)
        hidden, targets = inputs()
        want = jax.device_get(jax.jit(functools.partial(values_and_gradients, graph))(params, hidden, targets))
        for shape in MESHES:
            mesh = make_mesh(shape)
            with jax.set_mesh(mesh):
                args = (jax.device_put(params, param_shardings(params, mesh)), *shard_batch((hidden, targets), mesh))
                compiled = jax.jit(functools.partial(values_and_gradients, graph)).lower(*args).compile()
                got = jax.device_get(compiled(*args))
            errors = jax.tree.map(lambda a, b: float(np.abs(a - b).max() / (np.abs(b).max() + 1e-9)), got, want)
            results[f"{kind} {shape}"] = max(jax.tree.leaves(errors)), table_collectives(compiled.as_text())
    print(json.dumps(results))


if __name__ == "__main__":
    main()
