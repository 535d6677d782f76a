"""The compiled programs of a rollout, one set for each batch shape."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from zoomearth_jax.configs.episode import RowLayout
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.data_pipeline.rows.builder import TokenIds
from zoomearth_jax.models.family import Images, VisionLanguageModel
from zoomearth_jax.models.quantize import quantize_layers
from zoomearth_jax.models.sharding import cast_kernels
from zoomearth_jax.rl.policy import repeat_rows
from zoomearth_jax.rl.rollout.decoding import Sampler, Writing, append_pictures, close, narrow, prefill, reread, widen
from zoomearth_jax.rl.rollout.sampling import mark_seen


class Weights(NamedTuple):
    """A model's parameters as a rollout's programs take them.

    Attributes:
        reading: for prompts and pictures. writing: for tokens.
    """

    reading: Any
    writing: Any


class RolloutPrograms:
    """What the devices run: `first_turn`, then `next_turn` for each turn after it, both with the first tokens of their turn;
    `go_on` for more tokens; `narrow` and `widen` to leave rows out that have stopped."""

    def __init__(
        self,
        model: VisionLanguageModel,
        layout: RowLayout,
        tokens: TokenIds,
        mesh: Mesh | None = None,
        gather: bool = False,
        visit: int = 32,
        int8: bool = False,
    ):
        """Takes the model's structure; parameters come with each call.

        Args:
            mesh, gather: see `RolloutEngine`.
            visit: see `RolloutConfig`.
            int8: whether tokens are written with int8 kernels.
        """
        self._layout, self._tokens, self._mesh, self._gather, self._visit = layout, tokens, mesh, gather, visit
        self._int8 = int8
        self._graph, self._dtype = nnx.graphdef(model), model.compute.dtype
        options: dict[str, Any] = {"compiler_options": model.compute.compiler_options}
        self.first_turn = jax.jit(self._first_turn, static_argnames=("group", "filters"), **options)
        self.next_turn = jax.jit(self._next_turn, static_argnames=("length", "filters"), **options)
        self.go_on = jax.jit(self._go_on, static_argnames="filters", donate_argnames="cache", **options)
        self.cast, self.quantize = jax.jit(self._cast), jax.jit(quantize_layers)
        self.narrow = jax.jit(narrow, static_argnames="rows")
        self.widen = jax.jit(widen)

    def _cast(self, params):
        return cast_kernels(params, self._dtype, self._gather)

    def weights(self, params) -> Weights:
        """What the programs run on: the parameters themselves, or once per rollout in the compute type and gathered, where
        that makes a difference."""
        whole = self._mesh is None or not self._gather or self._mesh.shape["fsdp"] == 1
        wide = any(x.dtype.itemsize > jnp.dtype(self._dtype).itemsize for x in jax.tree.leaves(params))
        cast = params if whole and not wide else self.cast(params)
        return Weights(cast, self.quantize(cast) if self._int8 else cast)

    def _first_turn(
        self, weights: Weights, ids, valid, images: Images, keys, temperature, group: int, filters: SamplingConfig
    ):
        """Returns (visual tokens of the overviews, cache, the turn's first tokens) of `group` samples of each prompt."""
        model, writer = (nnx.merge(self._graph, part) for part in weights)
        sampler = Sampler(self._tokens, temperature, filters)
        length = self._layout.turn_lens[0]
        features, hidden, cache, start = prefill(model, ids, valid, images, group, length, self._layout.prune)
        seen = None
        if filters.repetition_penalty != 1:
            nothing = jnp.zeros((len(ids), model.config.vocab_size), bool)
            seen = repeat_rows(mark_seen(nothing, ids, valid), group)
        active = jnp.ones(hidden.shape[:1], bool)
        writing = sampler.begin(writer, hidden, cache, length, start, active, keys, seen)
        return features, *sampler.go_on(writer, cache, writing, self._visit)

    def _go_on(self, weights: Weights, cache, writing: Writing, temperature, filters: SamplingConfig):
        sampler = Sampler(self._tokens, temperature, filters)
        return sampler.go_on(nnx.merge(self._graph, weights.writing), cache, writing, self._visit)

    def _next_turn(
        self,
        weights: Weights,
        cache,
        written: Writing,
        own,
        ids,
        valid,
        images: Images,
        active,
        keys,
        temperature,
        length: int,
        filters: SamplingConfig,
    ):
        """What `_first_turn` gives, of the next turn of rows that were shown a picture.

        Args:
            written: the turn before.
            own: ids and valid to read in place of what was written; None for what was written.
            ids, valid, images: picture slots and pictures. active: rows that have one.
            length: slots of the turn.
        """
        model, writer = (nnx.merge(self._graph, part) for part in weights)
        sampler = Sampler(self._tokens, temperature, filters)
        cache, next_B = close(writer, cache, written) if own is None else reread(model, cache, written, *own)
        features, hidden, cache, next_B = append_pictures(
            model, cache, ids, valid, images, next_B, length, self._layout.prune
        )
        seen = mark_seen(written.seen_BV, ids, valid)
        writing = sampler.begin(writer, hidden, cache, length, next_B, active, keys, seen)
        return features, *sampler.go_on(writer, cache, writing, self._visit)
