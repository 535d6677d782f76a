"""The programs of training, compiled for a mesh whose devices need not be here, from shapes alone."""

from __future__ import annotations

import dataclasses
import functools
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.stages import Compiled

from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.configs.episode import EpisodeConfig
from zoomearth_jax.configs.model import ModelConfig
from zoomearth_jax.configs.objective import ObjectiveConfig
from zoomearth_jax.configs.rollout import RolloutConfig
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.configs.train import OptimizerConfig
from zoomearth_jax.data_pipeline.rows import Prompts, Replies, Views
from zoomearth_jax.models.qwen2_5_vl import Qwen2_5_VL, abstract_model
from zoomearth_jax.models.sharding import param_shardings, partition_spec
from zoomearth_jax.rl.learner import (
    GRPOBatch,
    TrainState,
    init_state,
    make_grpo_step,
    make_sft_step,
    reference_policy,
    row_batch,
)
from zoomearth_jax.rl.rollout import RolloutEngine


class Program(NamedTuple):
    """A compiled program and the shapes of its arguments."""

    compiled: Compiled
    args: tuple

    def example(self) -> tuple:
        """Arguments to run it with, on attached devices: zeros, and every row and token there."""

        def one(x):
            if not isinstance(x, jax.ShapeDtypeStruct):
                return x
            if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
                return jax.device_put(jax.random.split(jax.random.key(0), x.shape), x.sharding)
            return jax.device_put(np.ones(x.shape, bool) if x.dtype == bool else np.zeros(x.shape, x.dtype), x.sharding)

        return jax.tree.map(one, self.args)


@dataclasses.dataclass(frozen=True)
class Training:
    """What is compiled: a model in training on a mesh, as `sft` and `grpo` would run it.

    Attributes:
        model, episode: of a preset.
        compute: number types, attention, remat.
        mesh: of any devices.
        gather: see `MeshConfig`.
        freeze_vision: as of the verbs.
        accumulate: microbatches.
        kl: whether GRPO holds a reference policy.
    """

    model: ModelConfig
    episode: EpisodeConfig
    compute: ComputeConfig
    mesh: Mesh
    gather: bool = True
    freeze_vision: bool = True
    accumulate: int = 1
    kl: bool = True

    def init(self) -> tuple[Any, TrainState]:
        """The model's structure, and its state as shapes with shardings."""
        optimizer = OptimizerConfig().build(1000)
        graphs = []

        def make():
            model = Qwen2_5_VL(self.model, compute=self.compute, rngs=nnx.Rngs(0))
            graph, state = init_state(model, optimizer, freeze_vision=self.freeze_vision)
            graphs.append(graph)
            return state

        state = jax.eval_shape(make)
        return graphs[0], placed(state, param_shardings(state, self.mesh))

    def sft(self, batch_size: int) -> Program:
        """The fine-tuning step."""
        graph, state = self.init()
        step = make_sft_step(graph, OptimizerConfig().build(1000), self.episode, self.accumulate)
        return self._compile(step, state, self._row_batch(batch_size, 1))

    def rollout(self, prompts: int, group: int) -> tuple[Program, Program]:
        """The rollout's two parts: look (overviews, prefill, stage 1) and zoom (crops, stage 2), each with the weights' cast."""
        _, state = self.init()
        rows, filters = prompts * group, SamplingConfig(temperature=1.0)
        episode = self.episode
        whole = RolloutConfig(visit=max(episode.stage1_len, episode.stage2_len))  # each stage in one visit
        engine = RolloutEngine(
            abstract_model(self.model, self.compute), self._row_builder(), self.mesh, self.gather, whole
        )
        batch = self._row_batch(prompts, group)
        keys = self._on_rows(jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows)))

        @functools.partial(jax.jit, static_argnames="filters")
        def look_program(params, *args, filters):
            return engine._look(engine._cast(params), *args, group=group, filters=filters)

        @functools.partial(jax.jit, static_argnames="filters")
        def zoom_program(params, *args, filters):
            return engine._zoom(engine._cast(params), *args, filters=filters)

        look_args = (state.params, batch.prompt_ids, batch.prompt_valid, batch.overviews, keys, 1.0)
        look = self._compile(look_program, *look_args, filters=filters)
        shapes = jax.eval_shape(functools.partial(look_program, filters=filters), *look_args)
        _, cache, stage = placed(shapes, look.compiled.output_shardings)
        length = episode.crop_len
        crop_ids, crop_valid, zooms = (
            self._on_rows(jax.ShapeDtypeStruct(shape, dtype))
            for shape, dtype in (((rows, length), jnp.int32), ((rows, length), bool), ((rows,), bool))
        )
        zoom_args = (state.params, cache, stage, None, crop_ids, crop_valid, batch.crops, zooms, keys, 1.0)
        return look, self._compile(zoom_program, *zoom_args, filters=filters)

    def grpo(self, prompts: int, group: int) -> Program:
        """An update on a rollout; a frozen encoder's visual tokens come from the rollout."""
        graph, state = self.init()
        tokens = self.freeze_vision
        rows, written = prompts * group, self.episode.stage1_len + self.episode.stage2_len
        batch = GRPOBatch(
            self._row_batch(prompts, group, tokens),
            self._on_rows(jax.ShapeDtypeStruct((rows, written), jnp.float32)),
            self._on_rows(jax.ShapeDtypeStruct((rows,), jnp.float32)),
        )
        reference = self.reference(state) if self.kl else None
        step = make_grpo_step(
            graph,
            OptimizerConfig().build(1000),
            self.episode,
            temperature=1.0,
            banned_ids=self._row_builder().banned_ids,
            objective=ObjectiveConfig(kl_weight=0.04 if self.kl else 0.0),
            accumulate=self.accumulate,
        )
        return self._compile(step, state, reference, batch)

    def reference(self, state: TrainState):
        """The reference policy's parameters."""
        shapes = jax.eval_shape(lambda state: reference_policy(state, self.compute.dtype), state)
        return placed(shapes, param_shardings(shapes, self.mesh))

    def cache_bytes(self, rows: int) -> int:
        """Of the keys and values of all slots of a rollout's rows, on one chip."""
        text, episode = self.model.text, self.episode
        shape = (text.num_layers, rows, text.num_kv_heads, episode.prompt_len + episode.reply_len, text.head_dim)
        spec = partition_spec((None, "batch", "kv_heads", None, None), shape, self.mesh)
        return 2 * chip_bytes(jax.ShapeDtypeStruct(shape, self.compute.dtype, sharding=NamedSharding(self.mesh, spec)))

    def _compile(self, function, *args, **static) -> Program:
        with jax.set_mesh(self.mesh):
            return Program(function.lower(*args, **static).compile(), args)

    def _row_builder(self):
        """What the programs need of a `RowBuilder`; banned tokens are the stops, so that rows run to the ends of their slots."""
        model = self.model
        banned = (model.vision_start_id, model.vision_end_id, model.image_token_id, model.video_token_id)
        return SimpleNamespace(episode=self.episode, stop_ids=banned[:2], banned_ids=banned, pad_id=model.bos_id)

    def _on_rows(self, x) -> jax.ShapeDtypeStruct:
        """A shape whose first dimension lies along data and fsdp."""
        spec = partition_spec(("batch", *[None] * (len(x.shape) - 1)), x.shape, self.mesh)
        dtype = x.dtype if isinstance(x, jax.ShapeDtypeStruct) else jax.dtypes.canonicalize_dtype(x.dtype)
        return jax.ShapeDtypeStruct(x.shape, dtype, sharding=NamedSharding(self.mesh, spec))

    def _row_batch(self, prompts: int, group: int, tokens: bool = False):
        """Rows as the verbs send them; `tokens`: visual tokens in place of pictures."""
        episode = self.episode
        side = episode.view_side
        view = Views(np.zeros((1, side, side, 3), np.uint8), np.full((1, 2), side // episode.merged_px))
        prompt = Prompts(*np.zeros((2, 1, episode.prompt_len), np.int32), view)
        reply = Replies(*np.zeros((3, 1, episode.reply_len), np.int32), view)
        features = np.zeros((1, episode.view_tokens, self.model.text.width), jnp.dtype(self.compute.dtype))
        batch = row_batch(prompt, reply, self.model.vision, *([features] * 2 if tokens else []))

        def rows(count, tree):
            return jax.tree.map(lambda x: self._on_rows(jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype)), tree)

        batch = batch._replace(
            prompt_valid=batch.prompt_valid.astype(bool),
            reply_valid=batch.reply_valid.astype(bool),
            target=batch.target.astype(bool),
        )
        return type(batch)(*rows(prompts, batch[:4]), *rows(prompts * group, batch[4:]))


def count_parameters(model: ModelConfig) -> int:
    """Of the whole model."""
    return sum(x.size for x in jax.tree.leaves(nnx.state(abstract_model(model))))


def placed(shapes, shardings):
    """Shapes with shardings."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def chip_bytes(tree) -> int:
    """Bytes of a tree of shapes with shardings that one device holds."""
    return sum(int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize for x in jax.tree.leaves(tree))
