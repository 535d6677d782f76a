"""Run by test_layouts.py on eight devices, of one process or of two: the same episodes in several layouts of the sampler."""

import json
import re
import sys

import jax
import numpy as np
from flax import nnx

from zoomearth_jax.configs.rollout import RolloutConfig
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.data_pipeline.questions.procedural import scene_questions
from zoomearth_jax.models.sharding import make_mesh, move_rows_to, sampler_mesh
from zoomearth_jax.rl.rollout import engine as rollout
from zoomearth_jax.rl.rollout.engine import RolloutEngine
from zoomearth_jax.runs.models import load_model

FILTERS = {"top_k": 5, "top_p": 0.8, "repetition_penalty": 1.3}
sizes, turn_ids, filtered, *process = sys.argv[1:]
if process:
    jax.distributed.initialize(process[0], 2, int(process[1]))
key = jax.random.key(5)
sampling = SamplingConfig(temperature=1.0, **(FILTERS if filtered == "filtered" else {}))
share = 8 // jax.process_count()
questions = scene_questions("test", 1, 0, 8, 0.5)[jax.process_index() * share : (jax.process_index() + 1) * share]
rollout.LEAST_ROWS = 1  # half of a device's four rows are left out as soon as they have stopped

compilations: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: compilations.append(name) if "backend_compile" in name else None
)


def narrowed(engine) -> list[int]:
    """Counts the calls that leave rows out."""
    narrow, counts = engine.programs.narrow, [0]

    def counted(*args, **static):
        counts[0] += 1
        return narrow(*args, **static)

    engine.programs.narrow = counted
    return counts


def largest_gather(engine, weights, rows: int) -> int:
    """Elements of the largest result of an all-gather in the program that draws a turn's first tokens, which has no layers."""
    asked = engine.look(questions)
    filters = sampling.filters
    _, _, ready = engine.programs.prefill(weights.reading, *asked.on_devices, group=4, filters=filters)
    ready, keys = move_rows_to(engine.programs.sampler, (ready, engine_keys(rows)))
    args = weights.writing, ready, None, keys, 1.0
    text = engine.programs.begin.lower(*args, length=8, filters=filters).compile().as_text()
    shapes = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather(?:-start)?\(", text)
    assert shapes
    return max(int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes)


def engine_keys(rows: int):
    return rollout.row_keys(key, rollout.shard_batch(np.arange(rows, dtype=np.uint32), mesh), turns=2)[0]


found = []
mesh = make_mesh((2, 4, 1))
with jax.set_mesh(mesh):
    model, rows = load_model("nano-grpo", mesh=mesh)
    params = nnx.state(model, nnx.Param)
    for size in map(int, sizes.split(",")):
        sampler = sampler_mesh(mesh, size) if size > 1 else None
        engine = RolloutEngine(model, rows, mesh, True, RolloutConfig(visit=4, bucket=8, turn_ids=turn_ids), sampler)
        counts = narrowed(engine)
        played = engine(params, questions, key, sampling=sampling, group=4)
        before = len(compilations)
        again = engine(params, questions, key, sampling=sampling, group=4)
        found.append(
            {
                "size": size,
                "ids": played.replies.ids.tolist(),
                "logprobs": played.logprobs.tolist(),
                "turns": [len(episode.turns) for episode in played.episodes],
                "narrowed": counts[0],
                "recompiled": len(compilations) - before,
                "same_again": bool((again.replies.ids == played.replies.ids).all()),
                "vocabulary": model.config.vocab_size * share * 4,
            }
        )
        if sampler and not process:
            found[-1]["gathered"] = largest_gather(engine, engine.weights(params), share * 4)
print(json.dumps(found))
