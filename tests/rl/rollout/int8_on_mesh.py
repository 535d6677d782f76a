"""Run by test_int8.py on eight devices: tokens written with int8 kernels on one device, on a mesh, and on a sampler's meshes."""

import json

import jax
import numpy as np
from flax import nnx

from zoomearth_jax.configs.rollout import RolloutConfig
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.data_pipeline.questions.procedural import scene_questions
from zoomearth_jax.models.sharding import make_mesh, sampler_mesh
from zoomearth_jax.rl.rollout.engine import RolloutEngine
from zoomearth_jax.runs.models import load_model

questions, key, sampling = scene_questions("test", 1, 0, 8, 0.5), jax.random.key(5), SamplingConfig(temperature=1.0)
played, shards = [], []
for shape, size in (((1, 1, 1), 0), ((2, 2, 2), 0), ((4, 2, 1), 4)):
    mesh = make_mesh(shape)
    sampler = sampler_mesh(mesh, size) if size else None
    with jax.set_mesh(mesh):
        model, rows = load_model("nano-grpo", mesh=mesh)
        engine = RolloutEngine(model, rows, mesh, True, RolloutConfig(weights="int8"), sampler)
        weights = engine.weights(nnx.state(model, nnx.Param))
        played.append(engine(weights, questions, key, sampling=sampling, group=2))
        kernel = weights.writing["decoder"]["layers"]["mlp"]["gate_proj"]["kernel"].get_value()
        shards.append([x.addressable_shards[0].data.shape[-1] for x in kernel])
gaps = [float(np.abs(other.logprobs - played[0].logprobs).max()) for other in played]
same = [bool((other.replies.ids == played[0].replies.ids).all()) for other in played]
print(json.dumps({"gaps": gaps, "same": same, "shards": shards}))
