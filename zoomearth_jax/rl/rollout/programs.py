"""The compiled programs of a rollout, one set for each batch shape."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from zoomearth_jax.configs.episode import RowLayout
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.data_pipeline.rows.builder import TokenIds
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
    narrow,
    prefill,
    reread,
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
    turn's first token), `go_on` (more of them) and `close`, with `narrow` and `widen` to leave rows out that have stopped;
    those run on the sampler's mesh.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        layout: RowLayout,
        tokens: TokenIds,
        mesh: Mesh | None = None,
        gather: bool = False,
        visit: int = 32,
        sampler: Mesh | None = None,
        int8: bool = False,
    ):
        """Takes the model's structure; parameters come with each call.

        Args:
            mesh, gather: see `RolloutEngine`.
            visit: see `RolloutConfig`.
            sampler: the mesh on which turns are written; that in context at the calls without one.
            int8: whether turns are written with int8 kernels.
        """
        self.sampler, self._back = sampler, mesh if sampler else None
        self._layout, self._tokens, self._mesh, self._gather, self._visit = layout, tokens, mesh, gather, visit
        self._graph, self._dtype, self._int8 = nnx.graphdef(model), model.compute.dtype, int8
        options: dict[str, Any] = {"compiler_options": model.compute.compiler_options}
        self.prefill = jax.jit(self._prefill, static_argnames=("group", "filters"), **options)
        self.reread = jax.jit(self._reread, donate_argnames="cache", **options)
        self.append = jax.jit(self._append, static_argnames="length", **options)
        self.begin = OnMesh(jax.jit(self._begin, static_argnames=("length", "filters"), **options), sampler)
        self.go_on = OnMesh(
            jax.jit(self._go_on, static_argnames="filters", donate_argnames="cache", **options), sampler
        )
        self.close = OnMesh(jax.jit(self._close, donate_argnames="cache", **options), sampler)
        self.narrow = OnMesh(jax.jit(narrow, static_argnames="rows"), sampler)
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
        decoder, rest = decoder_parts(writing)
        return Weights(reading, joined_parts(self.share_out(decoder), rest))

    def _shared(self, model: VisionLanguageModel):
        """Where `share_out` puts parameters; stated, because jit may drop constraints where arguments lie on another mesh."""
        if self.sampler is None:
            return None
        decoder, _ = decoder_parts(nnx.state(model, nnx.Param))
        return param_shardings(jax.eval_shape(quantize_layers, decoder) if self._int8 else decoder, self.sampler)

    def end(self, weights: Weights, cache, writing: Writing, own=None):
        """The cache and position for what follows a turn, and its ids seen, on the mesh in context.

        Args:
            own: ids and validity [B, T] to read in place of what was written.
        """
        if own is None:
            cache, next_B = self.close(weights.writing, cache, writing)
            return move_rows_to(self._back, (cache, next_B, writing.seen_BV))
        cache, writing = move_rows_to(self._back, (cache, writing))
        return *self.reread(weights.reading, cache, writing, *own), writing.seen_BV

    def start(self, weights: Weights, ready: Ready, active, keys, *, length: int, temperature, filters: SamplingConfig):
        """`begin` and a first `go_on`: the turn's cache, and its first tokens."""
        ready, active, keys = move_rows_to(self.sampler, (ready, active, keys))
        writing = self.begin(weights.writing, ready, active, keys, temperature, length=length, filters=filters)
        return self.go_on(weights.writing, ready.cache, writing, temperature, filters=filters)

    def _model(self, weights) -> VisionLanguageModel:
        return nnx.merge(self._graph, weights)

    def _prefill(self, weights, ids, valid, images: Images, group: int, filters: SamplingConfig):
        """Returns (visual tokens of the overviews, `group` samples of each prompt that are ready to write)."""
        model = self._model(weights)
        features, hidden, cache, start = prefill(
            model, ids, valid, images, group, self._layout.turn_lens[0], self._layout.prune
        )
        seen = None
        if filters.repetition_penalty != 1:
            nothing = jnp.zeros((len(ids), model.config.vocab_size), bool)
            seen = repeat_rows(mark_seen(nothing, ids, valid), group)
        return features, Ready(hidden, cache, start, seen)

    def _begin(self, weights, ready: Ready, active, keys, temperature, length: int, filters: SamplingConfig):
        """The first token of rows that are `active` (all, where it is None)."""
        sampler = Sampler(self._tokens, temperature, filters)
        return sampler.begin(self._model(weights), ready, length, active, keys)

    def _go_on(self, weights, cache, writing: Writing, temperature, filters: SamplingConfig):
        sampler = Sampler(self._tokens, temperature, filters)
        return sampler.go_on(self._model(weights), cache, writing, self._visit)

    def _close(self, weights, cache, writing: Writing):
        return close(self._model(weights), cache, writing)

    def _reread(self, weights, cache, writing: Writing, ids, valid):
        return reread(self._model(weights), cache, writing, ids, valid)

    def _append(self, weights, cache, next_B, seen_BV, ids, valid, images: Images, length: int):
        """What `_prefill` gives, of pictures and the rows that they are shown to.

        Args:
            cache, next_B: what `close` or `reread` gives.
            seen_BV: of the turn before.
            ids, valid, images: picture slots and pictures.
            length: slots of the next turn.
        """
        features, hidden, cache, next_B = append_pictures(
            self._model(weights), cache, ids, valid, images, next_B, length, self._layout.prune
        )
        return features, Ready(hidden, cache, next_B, mark_seen(seen_BV, ids, valid))
