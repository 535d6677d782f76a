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
from zoomearth_jax.configs.rollout import RolloutConfig
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.data_pipeline.rows.builder import TokenIds, Views
from zoomearth_jax.models.families import abstract_model, family_of
from zoomearth_jax.models.family import Images, Sizes
from zoomearth_jax.models.quantize import is_layer_kernel
from zoomearth_jax.models.sharding import param_shardings, partition_spec, row_axes
from zoomearth_jax.rl.batches import GRPOBatch, PackedBatch, RowBatch
from zoomearth_jax.rl.rollout.programs import RolloutPrograms, decoder_parts, joined_parts
from zoomearth_jax.rl.state import TrainState, init_state, reference_policy
from zoomearth_jax.rl.steps import make_grpo_step, make_sft_step


class Program(NamedTuple):
    """A compiled program.

    Attributes:
        args: shapes of its arguments. results: those of what it gives.
        name: the part of a rollout that it belongs to.
        tokens: trips of its loop over tokens, if it has one.
        held_bytes: what of parameters and weights a chip holds beside its arguments.
    """

    compiled: Compiled
    args: tuple
    results: Any
    name: str = ""
    tokens: int = 1
    held_bytes: int = 0

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
        sampler: the same devices as tokens are written on them; as the mesh without one.
        int8: whether rollouts write tokens with int8 kernels.
    """

    model: Sizes
    episode: EpisodeConfig
    compute: ComputeConfig
    mesh: Mesh
    gather: bool = True
    freeze_vision: bool = True
    accumulate: int = 1
    kl: bool = True
    sampler: Mesh | None = None
    int8: bool = False

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

    def text(self, rows: int, length: int) -> Program:
        """The fine-tuning step on packed rows of nothing but text; a row has one visual token, which no id asks for."""
        graph, state = self.init()
        step = make_sft_step(graph, OptimizerConfig().build(1000), self.layout)

        def slots(dtype, *shape: int):
            return self._on_rows(jax.ShapeDtypeStruct((*(shape or (rows,)), length), dtype))

        shards = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        features = slots(jnp.int32, shards, rows // shards)
        ids, views = slots(jnp.int32), jax.ShapeDtypeStruct((rows, 1, self.model.width), self.compute.dtype)
        grids = self._on_rows(jax.ShapeDtypeStruct((rows, 1, 2), jnp.int32))
        batch = PackedBatch(ids, ids, ids, ids, slots(bool), features, grids, self._on_rows(views))
        return self._compile(step, state, batch)

    def rollout(self, prompts: int, group: int) -> list[Program]:
        """The programs of a rollout in their order: weights in the compute type; prompts; each turn's first token, loop over
        tokens and last token; the pictures before the next turn."""
        _, state = self.init()
        params, rows, layout = state.params, prompts * group, self.layout
        filters = SamplingConfig(temperature=1.0).filters
        model = abstract_model(self.model, self.compute)
        how_played = RolloutConfig(weights="int8" if self.int8 else "compute")
        run = RolloutPrograms(model, layout, self._tokens(), self.mesh, self.gather, how_played, self.sampler)
        batch = self._row_batch(prompts, group)
        keys = self._on_rows(jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows)))
        slots, dtypes = (rows, layout.picture_len), (jnp.int32, bool)
        ids, valid = (self._on_rows(jax.ShapeDtypeStruct(slots, dtype)) for dtype in dtypes)
        active, picture = self._on_rows(jax.ShapeDtypeStruct((rows,), bool)), self._views(rows, layout.picture_side)
        programs: list[Program] = []

        def add(name: str, held: int, function, *args, tokens: int = 1, **static):
            compiled = self._compile(function, *args, **static)
            programs.append(compiled._replace(name=name, tokens=tokens, held_bytes=held))
            return compiled.results

        def moved(mesh: Mesh, tree):
            return tree if self.sampler is None else placed(tree, jax.tree.map(functools.partial(_on_mesh, mesh), tree))

        reading = writing = add("prefill", 0, run.cast, params)
        held_reading = held_writing = chip_bytes(params)
        if self.int8:
            kernels, others = nnx.split_state(reading, is_layer_kernel, ...)
            quantized = add("prefill", held_reading + chip_bytes(others), run.quantize, kernels)
            writing, rounded = nnx.merge_state(quantized, others), chip_bytes(quantized)
            held_reading += rounded
            held_writing += rounded * jnp.dtype(self.compute.dtype).itemsize
        if self.sampler is not None:
            moving, rest = decoder_parts(writing)
            shared = add("prefill", held_reading, run.share_out, moving)
            writing = joined_parts(shared, rest)
            held_reading, held_writing = chip_bytes((params, shared)), chip_bytes((params, reading))
            held_writing -= chip_bytes(rest)  # arguments, though not read
        read = batch.prompt_ids, batch.prompt_valid, batch.overviews
        how: dict[str, Any] = {"group": group, "filters": filters}
        _, prompt, ready = add("prefill", held_reading, run.prefill, reading, *read, **how)
        on_sampler = self.sampler or self.mesh
        prompt_there = moved(on_sampler, prompt)
        held_growing = held_writing + chip_bytes((writing, prompt_there))
        for k, length in enumerate(layout.turn_lens):
            asked = moved(on_sampler, (ready, active if k else None, keys))
            turn = add("decode", held_writing, run.begin, writing, *asked, 1.0, length=length, filters=filters)
            cache = asked[0].cache
            for size, tokens in run.buckets(length).items():
                if missing := layout.turn(k).start + size - cache.k.shape[3]:
                    cache = add("decode", held_growing, run.grow, cache, slots=missing)
                more = writing, prompt_there, cache, turn, 1.0
                cache, turn = add("decode", held_writing, run.go_on, *more, tokens=tokens, **how)
            if k < layout.num_pictures:
                ended = add("decode", held_writing, run.close, writing, prompt_there, cache, turn)
                shown, following = (*moved(self.mesh, ended), None, ids, valid, picture), layout.turn_lens[k + 1]
                _, ready = add("pictures", held_reading, run.append, reading, prompt, *shown, length=following)
        return programs

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

    def cache_bytes(self, prompts: int, group: int) -> int:
        """Bytes of the keys and values of a rollout's prompts and of all slots of their groups' rows, on one chip."""
        parts = (prompts, self.layout.prompt_len), (prompts * group, self.layout.reply_len)
        shapes = [self.model.cache_shape(*part) for part in parts]
        mesh = self.sampler or self.mesh
        specs = [partition_spec((None, "rows", None, None, None), shape, mesh) for shape in shapes]
        caches = [
            jax.ShapeDtypeStruct(shape, self.compute.dtype, sharding=NamedSharding(mesh, spec))
            for shape, spec in zip(shapes, specs, strict=True)
        ]
        return 2 * chip_bytes(caches)

    def _compile(self, function, *args, **static) -> Program:
        with jax.set_mesh(self.mesh):
            lowered = function.lower(*args, **static)
            compiled = lowered.compile()
        return Program(compiled, args, placed(lowered.out_info, compiled.output_shardings))

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


def _on_mesh(mesh: Mesh, x) -> NamedSharding:
    """Where a mesh has an array of a rollout."""
    return NamedSharding(mesh, partition_spec(row_axes(x), x.shape, mesh))


def count_parameters(model: Sizes) -> int:
    """Number of parameters of the whole model."""
    return sum(x.size for x in jax.tree.leaves(nnx.state(abstract_model(model))))


def placed(shapes, shardings):
    """Shapes with shardings."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def chip_bytes(tree) -> int:
    """Bytes of a tree of shapes with shardings that one device holds."""
    return sum(int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize for x in jax.tree.leaves(tree))
