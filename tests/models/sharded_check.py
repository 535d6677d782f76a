"""Run by tests/models/test_sharded.py in processes of their own, since the number of devices is fixed when JAX starts.

sharded_check.py losses                with 8 devices: loss and gradients on three meshes against one device
sharded_check.py load ADDRESS I OUT    process I of 2 with 4 devices each: loads onto one mesh, saves to OUT
"""

import json
import sys

import jax
import numpy as np
from flax import nnx

from zoomearth_jax.data_pipeline.questions.procedural import scene_questions
from zoomearth_jax.models.qwen2_5_vl.model import Qwen2_5_VL
from zoomearth_jax.models.sharding import make_mesh, shard_batch
from zoomearth_jax.rl.batches import row_batch
from zoomearth_jax.rl.steps import row_logprobs
from zoomearth_jax.runs.models import load_model, resolve


def loss_and_gradients(model, batch, layout):
    graph, params = nnx.split(model, nnx.Param)

    @jax.jit
    def run(params, batch):
        def loss_fn(params):
            logp, _ = row_logprobs(nnx.merge(graph, params), batch, layout, 1.0, ())
            mask = batch.target[:, layout.written()].astype(np.float32)
            return -(logp * mask).sum() / mask.sum()

        return jax.value_and_grad(loss_fn)(params)

    loss, gradients = run(params, batch)
    return float(loss), {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(gradients)}


def losses():
    model, rows = load_model("nano")
    questions = scene_questions("sft", 0, 0, 16, 0.3)
    overviews = [rows.overview(q) for q in questions]
    replies = rows.reference_replies(questions)
    batch = row_batch(rows.prompts(questions, overviews), replies, model.config)
    want_loss, want = loss_and_gradients(model, batch, rows.layout)
    results = {}
    for shape in ((8, 1, 1), (2, 4, 1), (2, 2, 2)):
        mesh = make_mesh(shape)
        with jax.set_mesh(mesh):
            sharded = Qwen2_5_VL.from_pretrained(resolve("nano"), mesh=mesh)
            loss, gradients = loss_and_gradients(sharded, shard_batch(batch, mesh), rows.layout)
        kernel = sharded.decoder.layers.mlp.gate_proj.kernel[...]
        results[str(shape)] = {
            "loss": abs(loss - want_loss) / want_loss,
            "gradient": max(float(np.abs(gradients[k] - want[k]).max() / np.abs(want[k]).max()) for k in want),
            "shard": kernel.addressable_shards[0].data.shape,
            "kernel": kernel.shape,
        }
    print(json.dumps(results))


def load(address: str, process: int, out: str):
    jax.distributed.initialize(address, num_processes=2, process_id=process)
    mesh = make_mesh((1, 4, 2))
    model = Qwen2_5_VL.from_pretrained(resolve("nano"), mesh=mesh)
    kernel = model.decoder.layers.mlp.gate_proj.kernel[...]
    model.save_pretrained(out, dtype="bfloat16")
    print(json.dumps({"addressable": kernel.is_fully_addressable, "shards": len(kernel.addressable_shards)}))


if __name__ == "__main__":
    losses() if sys.argv[1] == "losses" else load(sys.argv[2], int(sys.argv[3]), sys.argv[4])
