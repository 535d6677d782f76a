"""The programs of training, compiled for a mesh whose devices need not be here, from nothing but shapes."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.stages import Compiled

from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.configs.episode import EpisodeConfig, RowLayout
from zoomearth_jax.configs.objective import ObjectiveConfig
from zoomearth_jax.configs.optimizer import OptimizerConfig
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.data_pipeline.rows.builder import TokenIds, Views
from zoomearth_jax.models.families import abstract_model, family_of
from zoomearth_jax.models.family import Images, Sizes
from zoomearth_jax.models.sharding import param_shardings, partition_spec
from zoomearth_jax.rl.batches import GRPOBatch, RowBatch
from zoomearth_jax.rl.rollout.programs import RolloutPrograms
from zoomearth_jax.rl.state import TrainState, init_state, reference_policy
from zoomearth_jax.rl.steps import make_grpo_step, make_sft_step


class Program(NamedTuple):
    """A compiled program and the shapes of its arguments."""

    compiled: Compiled
    args: tuple

    def example(self) -> tuple:
        """Arguments to run it with, on attached devices: zeros, and every row and token there, but an empty past."""

        def one(x):
            if not isinstance(x, jax.ShapeDtypeStruct):
                return x
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
                return jax.device_put(jax.random.split(jax.random.key(0), x.shape), x.sharding)
            return jax.device_put(np.ones(x.shape, bool) if x.dtype == bool else np.zeros(x.shape, x.dtype), x.sharding)

        return jax.tree.map(one, self.args)


@dataclasses.dataclass(frozen=True)
class Training:
    """What is compiled: a model in training on a mesh, as `sft` and `grpo` would run it.

    Attributes:
        model, episode: those of a preset.
        compute: number types, attention, remat.
        mesh: any devices, also such as aren't here.
        gather: see `MeshConfig`.
        freeze_vision: the verbs' setting: nothing of the vision encoder trains.
        accumulate: microbatches.
        kl: whether GRPO holds a reference policy.
    """

    model: Sizes
    episode: EpisodeConfig
    compute: ComputeConfig
    mesh: Mesh
    gather: bool = True
    freeze_vision: bool = True
    accumulate: int = 1
    kl: bool = True

    @property
    def layout(self) -> RowLayout:
        """The slots of the rows."""
        return self.episode.layout(self.model.merged_px)

    def init(self) -> tuple[Any, TrainState]:
        """The model's structure, and its state as shapes with shardings."""
        optimizer = OptimizerConfig().build(1000)
        graphs = []

        def make():
            model = family_of(self.model).make(self.model, self.compute, nnx.Rngs(0))
            graph, state = init_state(model, optimizer, freeze_vision=self.freeze_vision)
            graphs.append(graph)
            return state

        state = jax.eval_shape(make)
        return graphs[0], placed(state, param_shardings(state, self.mesh))

    def sft(self, batch_size: int) -> Program:
        """The fine-tuning step."""
        graph, state = self.init()
        step = make_sft_step(graph, OptimizerConfig().build(1000), self.layout, self.accumulate)
        return self._compile(step, state, self._row_batch(batch_size, 1))

    def rollout(self, prompts: int, group: int) -> list[Program]:
        """The rollout's turns, each with the weights' cast: overviews, prefill and the first; pictures and each after it."""
        _, state = self.init()
        rows, filters, layout = prompts * group, SamplingConfig(temperature=1.0), self.layout
        model, visit = abstract_model(self.model, self.compute), max(layout.turn_lens)  # each turn in one visit
        programs = RolloutPrograms(model, layout, self._tokens(), self.mesh, self.gather, visit)
        batch = self._row_batch(prompts, group)
        keys = self._on_rows(jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows)))

        @jax.jit
        def first(params, *args):
            return programs.first_turn(programs.weights(params), *args, group=group, filters=filters)

        @functools.partial(jax.jit, static_argnames="length")
        def following(params, *args, length):
            return programs.next_turn(programs.weights(params), *args, length=length, filters=filters)

        args: tuple = (state.params, batch.prompt_ids, batch.prompt_valid, batch.overviews, keys, 1.0)
        turns, shapes = [self._compile(first, *args)], jax.eval_shape(first, *args)
        slots, dtypes = (rows, layout.picture_len), (jnp.int32, bool)
        ids, valid = (self._on_rows(jax.ShapeDtypeStruct(slots, dtype)) for dtype in dtypes)
        active, picture = self._on_rows(jax.ShapeDtypeStruct((rows,), bool)), self._views(rows, layout.picture_side)
        for length in layout.turn_lens[1:]:
            _, cache, writing = placed(shapes, turns[-1].compiled.output_shardings)
            args = (state.params, cache, writing, None, ids, valid, picture, active, keys, 1.0)
            turns.append(self._compile(following, *args, length=length))
            shapes = jax.eval_shape(functools.partial(following, length=length), *args)
        return turns

    def grpo(self, prompts: int, group: int) -> Program:
        """An update on a rollout; a frozen encoder's visual tokens come from the rollout."""
        graph, state = self.init()
        tokens = self.freeze_vision
        rows, written = prompts * group, self.layout.written_len
        batch = GRPOBatch(
            self._row_batch(prompts, group, tokens),
            self._on_rows(jax.ShapeDtypeStruct((rows, written), jnp.float32)),
            self._on_rows(jax.ShapeDtypeStruct((rows,), jnp.float32)),
        )
        reference = self.reference(state) if self.kl else None
        step = make_grpo_step(
            graph,
            OptimizerConfig().build(1000),
            self.layout,
            temperature=1.0,
            banned_ids=self._tokens().banned_ids,
            objective=ObjectiveConfig(kl_weight=0.04 if self.kl else 0.0),
            accumulate=self.accumulate,
        )
        return self._compile(step, state, reference, batch)

    def reference(self, state: TrainState):
        """The reference policy's parameters."""
        shapes = jax.eval_shape(lambda state: reference_policy(state, self.compute.dtype), state)
        return placed(shapes, param_shardings(shapes, self.mesh))

    def cache_bytes(self, rows: int) -> int:
        """Bytes of the keys and values of all slots of a rollout's rows, on one chip."""
        shape = self.model.cache_shape(rows, self.layout.prompt_len + self.layout.reply_len)
        spec = partition_spec((None, "batch", "kv_heads", None, None), shape, self.mesh)
        return 2 * chip_bytes(jax.ShapeDtypeStruct(shape, self.compute.dtype, sharding=NamedSharding(self.mesh, spec)))

    def _compile(self, function, *args, **static) -> Program:
        with jax.set_mesh(self.mesh):
            return Program(function.lower(*args, **static).compile(), args)

    def _tokens(self) -> TokenIds:
        """Special ids; the stops are banned, so that rows run to the ends of their slots."""
        banned = self.model.placed_ids
        return TokenIds(0, banned[:2], banned)

    def _on_rows(self, x) -> Any:
        """A shape whose first dimension lies along data and fsdp."""
        spec = partition_spec(("batch", *[None] * (len(x.shape) - 1)), x.shape, self.mesh)
        dtype = x.dtype if isinstance(x, jax.ShapeDtypeStruct) else jax.dtypes.canonicalize_dtype(x.dtype)
        return jax.ShapeDtypeStruct(x.shape, dtype, sharding=NamedSharding(self.mesh, spec))

    def _views(self, count: int, side: int) -> Images:
        """Square pictures of `side` px as the verbs send them, one per row."""
        view = Views(np.zeros((1, side, side, 3), np.uint8), np.full((1, 2), side // self.layout.merged_px))
        return self._repeated(count, self.model.prepare(*view))

    def _repeated(self, count: int, tree):
        """Shapes of a tree of one row, for `count` rows."""
        return jax.tree.map(lambda x: self._on_rows(jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype)), tree)

    def _row_batch(self, prompts: int, group: int, tokens: bool = False):
        """Rows as the verbs send them; `tokens`: visual tokens in place of pictures."""
        layout, replies = self.layout, prompts * group
        pictures = replies * layout.num_pictures

        def slots(count: int, length: int, dtype):
            return self._repeated(count, jax.ShapeDtypeStruct((1, length), dtype))

        def grids(count: int, views: int):
            return self._repeated(count, jax.ShapeDtypeStruct((1, views, 2), jnp.int32))

        def views(count: int, side: int):
            if not tokens:
                return self._views(count, side)
            shape = (1, (side // layout.merged_px) ** 2, self.model.width)
            return self._repeated(count, jax.ShapeDtypeStruct(shape, self.compute.dtype))

        return RowBatch(
            slots(prompts, layout.prompt_len, jnp.int32),
            slots(prompts, layout.prompt_len, bool),
            views(prompts, layout.view_side),
            grids(prompts, 1),
            slots(replies, layout.reply_len, jnp.int32),
            slots(replies, layout.reply_len, bool),
            slots(replies, layout.reply_len, bool),
            views(pictures, layout.picture_side) if pictures else None,
            grids(replies, layout.num_pictures) if pictures else None,
        )


def count_parameters(model: Sizes) -> int:
    """Number of parameters of the whole model."""
    return sum(x.size for x in jax.tree.leaves(nnx.state(abstract_model(model))))


def placed(shapes, shardings):
    """Shapes with shardings."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def chip_bytes(tree) -> int:
    """Bytes of a tree of shapes with shardings that one device holds."""
    return sum(int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize for x in jax.tree.leaves(tree))
