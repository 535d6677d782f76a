"""Run by test_turns.py on eight devices: the rows of three turns, played and scored on a mesh."""

import json

import jax
import numpy as np
from flax import nnx

from tests.rl.rollout.wandering import Wander
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.data_pipeline.questions.procedural import scene_questions
from zoomearth_jax.models.sharding import local_rows, make_mesh, shard_batch
from zoomearth_jax.rl.batches import row_batch
from zoomearth_jax.rl.rollout.engine import RolloutEngine
from zoomearth_jax.rl.steps import row_logprobs
from zoomearth_jax.runs.models import load_model

questions, key, sampling = scene_questions("test", 1, 0, 8, 0.5), jax.random.key(5), SamplingConfig(temperature=1.0)
gaps, turns, ids = [], [], []
for mesh in (None, make_mesh((4, 2, 1))):
    with jax.set_mesh(mesh or make_mesh((1, 1, 1), jax.devices()[:1])):
        model, rows = load_model("nano-grpo", mesh=mesh)
        rows = rows.replaced(turn_lens=(20, 16, 12))
        engine = RolloutEngine(model, rows, mesh)
        graph, params = nnx.split(model, nnx.Param)
        played = engine(params, questions, key, sampling=sampling, group=2, tool=Wander(rows))
        batch = shard_batch(row_batch(played.prompts, played.replies, model.config), mesh)
        score = jax.jit(lambda p, b: row_logprobs(nnx.merge(graph, p), b, rows.layout, 1.0, rows.tokens.banned_ids)[0])  # noqa: B023
        mask = played.replies.target[:, rows.layout.written()]
        gaps.append(float(np.abs(local_rows(score(params, batch)) - played.logprobs)[mask].max()))
        turns.append([len(e.turns) for e in played.episodes])
        ids.append(played.replies.ids)
print(json.dumps({"gaps": gaps, "turns": turns, "same": bool((ids[0] == ids[1]).all())}))
