"""Run by test_layouts.py on eight devices: tokens are drawn on shards of the vocabulary, without bringing logits together."""

import json
import re

import jax
import numpy as np
from jax.sharding import NamedSharding

from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.models.sharding import make_mesh, partition_spec, sampler_mesh
from zoomearth_jax.rl.rollout.sampling import sample

ROWS, VOCABULARY = 16, 4096
BANNED = (*range(512), 4095)  # all ids of a first shard of eight
FILTERS = {"top_k": 50, "top_p": 0.7, "repetition_penalty": 1.5}
logits = np.random.default_rng(0).standard_normal((ROWS, VOCABULARY)).astype(np.float32)
seen = logits > 1
keys = jax.random.split(jax.random.key(0), ROWS)
trainer = make_mesh((1, 8, 1))

found = []
for settings in ({}, FILTERS):
    filters = SamplingConfig(**settings)
    held = seen if settings else None

    def draw(logits_BV, seen_BV, temperature):
        return sample(logits_BV, keys, temperature, BANNED, filters, seen_BV)  # noqa: B023

    for temperature in (0.0, 1.0):
        expected = [np.asarray(x) for x in jax.jit(draw)(logits, held, temperature)]
        for size in (2, 4, 8):
            mesh = sampler_mesh(trainer, size)
            with jax.set_mesh(mesh):
                cut = NamedSharding(mesh, partition_spec(("batch", "vocab"), logits.shape, mesh))
                rows = NamedSharding(mesh, partition_spec(("rows", None), logits.shape, mesh))
                args = jax.device_put(logits, cut), None if held is None else jax.device_put(held, rows)
                program = jax.jit(draw).lower(*args, temperature).compile()
                ids, logps = program(*args, temperature)
            shapes = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather(?:-start)?\(", program.as_text())
            gathered = max([int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes], default=0)
            same = bool((np.asarray(ids) == expected[0]).all())
            gap = float(np.abs(np.asarray(logps) - expected[1]).max())
            found.append({"filtered": bool(settings), "size": size, "same": same, "gap": gap, "gathered": gathered})
print(json.dumps(found))
