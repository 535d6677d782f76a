"""The compiled programs of a rollout, one set for each batch shape."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from zoomearth_jax.configs.episode import RowLayout
from zoomearth_jax.configs.rollout import RolloutConfig
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.data_pipeline.rows.builder import TokenIds
from zoomearth_jax.models.attention import KVCache, Prefix
from zoomearth_jax.models.family import Images, VisionLanguageModel
from zoomearth_jax.models.quantize import is_layer_kernel, quantize_layers
from zoomearth_jax.models.sharding import cast_kernels, move_rows_to, param_shardings, share_out_params
from zoomearth_jax.rl.policy import repeat_rows
from zoomearth_jax.rl.rollout.decoding import (
    Ready,
    Sampler,
    Writing,
    append_pictures,
    close,
    grow_cache,
    narrow,
    prefill,
    reread,
    shared_by,
    widen,
)
from zoomearth_jax.rl.rollout.sampling import mark_seen


class Weights(NamedTuple):
    """A model's parameters as a rollout's programs take them.

    Attributes:
        reading: for prompts and pictures. writing: for tokens.
    """

    reading: Any
    writing: Any


class Prompts(NamedTuple):
    """The prompts' cache, laid out for the programs that read prompts and pictures, and for those that write tokens."""

    reading: Prefix
    writing: Prefix


def decoder_parts(params) -> tuple[dict, dict]:
    """A model's parameters that tokens need, and the vision encoder's, which they don't."""
    vision = {"vision": params["vision"]}
    return {name: part for name, part in params.items() if name not in vision}, vision


def joined_parts(decoder: dict, vision: dict) -> nnx.State:
    """The parameters that `decoder_parts` took apart."""
    return nnx.State({**decoder, **vision})


class OnMesh:
    """A compiled function that runs with a mesh of its own in context; without one, in the caller's."""

    def __init__(self, function, mesh: Mesh | None):
        self._function, self._mesh = function, mesh

    def _context(self):
        return contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)

    def __call__(self, *args, **static):
        with self._context():
            return self._function(*args, **static)

    def lower(self, *args, **static):
        """As that of `jax.jit`."""
        with self._context():
            return self._function.lower(*args, **static)


class RolloutPrograms:
    """What the devices run.

    Prompts and pictures are read by `prefill`, `reread` and `append`, on the mesh in context. Turns are written by `begin` (a
    turn's first token), `go_on` (more of them) and `close`, with `grow` for more slots, and `narrow` and `widen` to leave rows
    out that have stopped; those run on the sampler's mesh.

    Caches are the rows' own, and most programs take them over. The prompts' are an argument beside them, which nothing changes.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        layout: RowLayout,
        tokens: TokenIds,
        mesh: Mesh | None = None,
        gather: bool = False,
        config: RolloutConfig = RolloutConfig(),
        sampler: Mesh | None = None,
    ):
        """Takes the model's structure; parameters come with each call.

        Args:
            mesh, gather: see `RolloutEngine`.
            config: of it, `visit`, `bucket` and `weights`.
            sampler: the mesh on which turns are written; that in context at the calls without one.
        """
        self.sampler, self._back = sampler, mesh if sampler else None
        self._layout, self._tokens, self._mesh, self._gather = layout, tokens, mesh, gather
        self._visit, self._bucket, self._int8 = config.visit, config.bucket, config.weights == "int8"
        self._graph, self._dtype = nnx.graphdef(model), model.compute.dtype
        options: dict[str, Any] = {"compiler_options": model.compute.compiler_options}
        self.prefill = jax.jit(self._prefill, static_argnames=("group", "filters"), **options)
        self.reread = jax.jit(self._reread, donate_argnames="cache", **options)
        self.append = jax.jit(self._append, static_argnames="length", **options)
        self.begin = OnMesh(jax.jit(self._begin, static_argnames=("length", "filters"), **options), sampler)
        self.go_on = OnMesh(
            jax.jit(self._go_on, static_argnames=("group", "filters"), donate_argnames="cache", **options), sampler
        )
        self.close = OnMesh(jax.jit(self._close, donate_argnames="cache", **options), sampler)
        self.grow = OnMesh(jax.jit(grow_cache, static_argnames="slots"), sampler)
        self.narrow = OnMesh(jax.jit(narrow, static_argnames=("rows", "group")), sampler)
        self.widen = OnMesh(jax.jit(widen), sampler)
        self.cast, self.quantize = jax.jit(self._cast), jax.jit(quantize_layers)
        self.share_out = OnMesh(jax.jit(share_out_params, out_shardings=self._shared(model)), sampler)

    def _cast(self, params):
        return cast_kernels(params, self._dtype, self._gather and self.sampler is None)

    def weights(self, params) -> Weights:
        """What the programs run on: the parameters themselves, or once per rollout in the compute type and, for tokens,
        gathered or as the sampler's devices share them out, where that makes a difference."""
        gathers = self._mesh is not None and self._gather and self.sampler is None and self._mesh.shape["fsdp"] > 1
        wide = any(x.dtype.itemsize > jnp.dtype(self._dtype).itemsize for x in jax.tree.leaves(params))
        reading = self.cast(params) if gathers or wide else params
        writing = reading
        if self._int8:
            kernels, others = nnx.split_state(reading, is_layer_kernel, ...)
            writing = nnx.merge_state(self.quantize(kernels), others)
        if self.sampler is None:
            return Weights(reading, writing)
        decoder, vision = decoder_parts(writing)
        return Weights(reading, joined_parts(self.share_out(decoder), vision))

    def _shared(self, model: VisionLanguageModel):
        """Where `share_out` puts parameters; stated, because jit may drop constraints where arguments lie on another mesh."""
        if self.sampler is None:
            return None
        decoder, _ = decoder_parts(nnx.state(model, nnx.Param))
        return param_shardings(jax.eval_shape(quantize_layers, decoder) if self._int8 else decoder, self.sampler)

    def read(self, weights: Weights, ids, valid, images: Images, *, group: int, filters: SamplingConfig):
        """`prefill`, with the prompts' cache in both layouts."""
        features, prompts, ready = self.prefill(weights.reading, ids, valid, images, group=group, filters=filters)
        return features, Prompts(prompts, move_rows_to(self.sampler, prompts)), ready

    def end(self, weights: Weights, prompts: Prompts, cache: KVCache, writing: Writing, own=None):
        """The cache and position for what follows a turn, and its ids seen, on the mesh in context.

        Args:
            own: ids and validity [B, T] to read in place of what was written.
        """
        if own is None:
            cache, next_B = self.close(weights.writing, prompts.writing, cache, writing)
            return move_rows_to(self._back, (cache, next_B, writing.seen_BV))
        cache, writing = move_rows_to(self._back, (cache, writing))
        return *self.reread(weights.reading, prompts.reading, cache, writing, *own), writing.seen_BV

    def slots(self, length: int, step: int = 1) -> int:
        """Slots that the cache has of a turn of `length` while the visit from token `step` on is written."""
        until, bucket = step + self._visit, self._bucket or length
        return length if until >= length else min(length, -(-(until - 1) // bucket) * bucket)

    def buckets(self, length: int) -> dict[int, int]:
        """The sizes that a turn of `length` has in turn, and how many tokens are written at each at most, the first aside."""
        sizes = {self.slots(length): 0}
        for step in range(1, length, self._visit):
            slots = self.slots(length, step)
            sizes[slots] = sizes.get(slots, 0) + min(self._visit, length - step)
        return sizes

    def start(
        self,
        weights: Weights,
        prompts: Prefix,
        ready: Ready,
        active,
        keys,
        *,
        length: int,
        group: int,
        temperature,
        filters: SamplingConfig,
    ):
        """`begin` and a first `go_on`: the turn's cache, and its first tokens."""
        ready, active, keys = move_rows_to(self.sampler, (ready, active, keys))
        writing = self.begin(weights.writing, ready, active, keys, temperature, length=length, filters=filters)
        return self.go_on(weights.writing, prompts, ready.cache, writing, temperature, group=group, filters=filters)

    def _model(self, weights) -> VisionLanguageModel:
        return nnx.merge(self._graph, weights)

    def _prefill(self, weights, ids, valid, images: Images, group: int, filters: SamplingConfig):
        """Returns (visual tokens of the overviews, the prompts' cache, `group` samples of each that are ready to write)."""
        model, slots = self._model(weights), self.slots(self._layout.turn_lens[0])
        features, hidden, cache, start = prefill(model, ids, valid, images, group, slots, self._layout.prune)
        seen = None
        if filters.repetition_penalty != 1:
            nothing = jnp.zeros((len(ids), model.config.vocab_size), bool)
            seen = repeat_rows(mark_seen(nothing, ids, valid), group)
        return features, cache.prefix, Ready(hidden, cache._replace(prefix=None), jnp.int32(0), start, seen)

    def _begin(self, weights, ready: Ready, active, keys, temperature, length: int, filters: SamplingConfig):
        """The first token of rows that are `active` (all, where it is None)."""
        sampler = Sampler(self._tokens, temperature, filters)
        return sampler.begin(self._model(weights), ready, length, active, keys)

    def _go_on(
        self,
        weights,
        prompts: Prefix,
        cache: KVCache,
        writing: Writing,
        temperature,
        group: int,
        filters: SamplingConfig,
    ):
        sampler = Sampler(self._tokens, temperature, filters)
        cache = cache._replace(prefix=shared_by(prompts, writing.row_B, group))
        cache, writing = sampler.go_on(self._model(weights), cache, writing, self._visit)
        return cache._replace(prefix=None), writing

    def _close(self, weights, prompts: Prefix, cache: KVCache, writing: Writing):
        cache, next_B = close(self._model(weights), cache._replace(prefix=prompts), writing)
        return cache._replace(prefix=None), next_B

    def _reread(self, weights, prompts: Prefix, cache: KVCache, writing: Writing, ids, valid):
        cache, next_B = reread(self._model(weights), cache._replace(prefix=prompts), writing, ids, valid)
        return cache._replace(prefix=None), next_B

    def _append(
        self, weights, prompts: Prefix, cache: KVCache, next_B, seen_BV, ids, valid, images: Images, length: int
    ):
        """Returns (visual tokens of pictures, the rows that they are shown to, ready to write again).

        Args:
            cache, next_B: what `close` or `reread` gives.
            seen_BV: of the turn before.
            ids, valid, images: picture slots and pictures.
            length: slots of the next turn.
        """
        first, slots = cache.k.shape[3] + ids.shape[1], self.slots(length)
        features, hidden, cache, next_B = append_pictures(
            self._model(weights), cache._replace(prefix=prompts), ids, valid, images, next_B, slots, self._layout.prune
        )
        seen = mark_seen(seen_BV, ids, valid)
        return features, Ready(hidden, cache._replace(prefix=None), jnp.int32(first), next_B, seen)
