"""What the devices run for a server: rows of one cache that read and write at the same time, each at a place of its own.

All shapes come from a few sizes, so that nothing compiles once each has been seen (`Generator.warm_up`). What a row holds
is contiguous: the host knows how many slots it has used, and what lies after them is never seen.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zoomearth_jax.data_pipeline.rows.builder import TokenIds
from zoomearth_jax.models.attention import KVCache, Prefix, one_sample
from zoomearth_jax.models.family import Images, VisionLanguageModel
from zoomearth_jax.models.layers import Array
from zoomearth_jax.models.sharding import constrain, row_axes
from zoomearth_jax.rl.policy import last_valid
from zoomearth_jax.rl.rollout.decoding import append_to_cache, empty_cache
from zoomearth_jax.rl.rollout.sampling import mark_seen
from zoomearth_jax.serving.sampling import Draws, draw


class Slots(NamedTuple):
    """What B rows hold on the devices.

    Attributes:
        k, v: keys and values [L, B, K, S, H]. hidden_BD: the state that predicts each row's next token.
        seen_BV: the ids that each row holds, bool.
        position_B: position of the next token. start_B: that of the first one of the turn.
    """

    k: jax.Array
    v: jax.Array
    hidden_BD: jax.Array
    seen_BV: jax.Array
    position_B: jax.Array
    start_B: jax.Array


class Places(NamedTuple):
    """Where R rows stand, int32 [R].

    Attributes:
        row_R: the number of each; from B on where there is none.
        used_R: slots that it has used.
    """

    row_R: Array
    used_R: Array

    @classmethod
    def none(cls, count: int, rows: int) -> Places:
        """No rows, of B; the host fills some in."""
        return cls(rows + np.arange(count, dtype=np.int32), np.zeros(count, np.int32))


class Stretch(NamedTuple):
    """What R rows read.

    Attributes:
        ids_RT, valid_RT: token ids, right-padded. features_RMD: visual tokens of their pictures, in order.
        grids_RI2: merged grids of the pictures.
        again_R: bool, rows that read it in place of the turn that they wrote last.
    """

    ids_RT: Array
    valid_RT: Array
    features_RMD: Array
    grids_RI2: Array
    again_R: Array


class ServingPrograms:
    """`see` encodes pictures, `read` puts stretches into rows' slots, `write` lets rows write some tokens."""

    def __init__(self, model: VisionLanguageModel, tokens: TokenIds, visit: int):
        """Takes the model's structure; parameters come with each call.

        Args:
            visit: tokens that a row writes in a call.
        """
        self._graph, self._tokens, self._visit = nnx.graphdef(model), tokens, visit
        self._config, self._dtype = model.config, model.compute.dtype
        options: dict[str, Any] = {"compiler_options": model.compute.compiler_options}
        self.see = jax.jit(self._see, **options)
        self.read = jax.jit(self._read, static_argnames="past", donate_argnames="slots", **options)
        self.write = jax.jit(self._write, static_argnames="past", donate_argnames="slots", **options)

    def empty(self, rows: int, slots: int) -> Slots:
        """Rows that hold nothing. There are `visit` slots more than asked for, which a visit may write that ends before it."""
        config = self._config

        def make():
            shape = config.cache_shape(rows, slots + self._visit)
            k, v = (jnp.zeros(shape, self._dtype) for _ in range(2))
            hidden_BD, seen_BV = (
                jnp.zeros((rows, config.width), self._dtype),
                jnp.zeros((rows, config.vocab_size), bool),
            )
            return _pinned(Slots(k, v, hidden_BD, seen_BV, *(jnp.zeros(rows, jnp.int32) for _ in range(2))))

        return jax.jit(make)()

    def num_bytes(self, rows: int, slots: int) -> int:
        """Bytes that `empty` takes."""
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(lambda: self.empty(rows, slots))))

    def _model(self, weights) -> VisionLanguageModel:
        return nnx.merge(self._graph, weights)

    def _see(self, weights, images: Images):
        """Visual tokens [I, M, D] of pictures."""
        return self._model(weights).encode_views(images)

    def _read(self, weights, slots: Slots, places: Places, stretch: Stretch, past: int):
        """Appends a stretch to each row.

        Args:
            past: slots that are looked at of what rows hold already; with 0 the rows begin anew.
        """
        row_R, cache, start_R = places.row_R, None, jnp.zeros(len(places.row_R), jnp.int32)
        seen_RV = jnp.zeros((len(row_R), slots.seen_BV.shape[1]), bool)
        if past:
            k, v, seen_RV = (_picked(x, row_R, past) for x in (slots.k, slots.v, slots.seen_BV))
            cache = KVCache(k, v, one_sample(_used(places, past)))
            position_R, turn_R = (_picked(x, row_R) for x in (slots.position_B, slots.start_B))
            start_R = jnp.where(stretch.again_R, turn_R, position_R)
        hidden_RTD, own, next_R = self._model(weights).segment(
            stretch.ids_RT, one_sample(stretch.valid_RT), stretch.features_RMD, stretch.grids_RI2, start_R, cache
        )
        seen_RV = mark_seen(seen_RV, stretch.ids_RT, stretch.valid_RT)
        hidden_RD = last_valid(hidden_RTD, stretch.valid_RT)
        return _put(slots, places, own, past, hidden_BD=hidden_RD, seen_BV=seen_RV, position_B=next_R, start_B=next_R)

    def _write(self, weights, slots: Slots, places: Places, left_R, draws: Draws, past: int):
        """Lets rows write up to a visit's tokens, until all have stopped.

        Args:
            left_R: tokens that each may write at most.
            past: slots that are looked at of what rows hold.

        Returns:
            (slots, ids [R, visit], how many of them each row wrote [R], whether it stopped [R]). Stop tokens are among the ids,
            but no row holds them.
        """
        model, rows = self._model(weights), len(places.row_R)
        k, v = (_picked(x, places.row_R, past) for x in (slots.k, slots.v))
        cache = empty_cache(Prefix(k, v, _used(places, past)), rows, self._visit)
        hidden_RD, seen_RV, start_R = (
            _picked(x, places.row_R) for x in (slots.hidden_BD, slots.seen_BV, slots.position_B)
        )
        ids_RN = jnp.full((rows, self._visit), self._tokens.pad_id, jnp.int32)
        nothing_R = jnp.zeros(rows, jnp.int32)

        def going(loop):
            return loop[0].any() & (loop[1] < self._visit)

        def body(loop):
            alive_R, step, ids_RN, wrote_R, stopped_R, cache, hidden_RD, seen_RV = loop
            token_R = draw(
                model.logits(hidden_RD), draws._replace(step_R=draws.step_R + step), self._tokens.banned_ids, seen_RV
            )
            stops_R = jnp.isin(token_R, jnp.array(self._tokens.stop_ids))
            held_R = alive_R & ~stops_R
            ids_RN = ids_RN.at[:, step].set(jnp.where(alive_R, token_R, self._tokens.pad_id))
            wrote_R = wrote_R + alive_R.astype(jnp.int32)
            hidden_R1D, own, _ = model.segment(
                token_R[:, None], one_sample(held_R[:, None]), start_B=start_R + step, past=cache
            )
            return (
                held_R & (wrote_R < left_R),
                step + 1,
                ids_RN,
                wrote_R,
                stopped_R | (alive_R & stops_R),
                append_to_cache(cache, own, step),
                jnp.where(held_R[:, None], hidden_R1D[:, 0], hidden_RD),
                mark_seen(seen_RV, token_R[:, None], held_R[:, None]),
            )

        loop = (left_R > 0, jnp.int32(0), ids_RN, nothing_R, left_R < 0, cache, hidden_RD, seen_RV)
        _, _, ids_RN, wrote_R, stopped_R, cache, hidden_RD, seen_RV = jax.lax.while_loop(going, body, loop)
        slots = _put(
            slots,
            places,
            cache,
            past,
            hidden_BD=hidden_RD,
            seen_BV=seen_RV,
            position_B=start_R + wrote_R - stopped_R.astype(jnp.int32),
        )
        return slots, ids_RN, wrote_R, stopped_R


def _pinned(slots: Slots) -> Slots:
    """Keeps each row's part on the devices that hold the row."""
    return Slots(*(constrain(x, *row_axes(x)) for x in slots))


def _used(places: Places, past: int):
    """Which of a row's first `past` slots hold something, bool [R, past]."""
    return jnp.arange(past) < places.used_R[:, None]


def _picked(x, row_R, past: int = 0):
    """Some rows of an array [B, ...], or the first `past` slots of some rows of a cache [L, B, K, S, H]. All rows together stand
    in their own places and aren't moved."""
    axis = 1 if past and x.ndim == 5 else 0
    if axis:
        x = x[:, :, :, :past]
    return x if len(row_R) == x.shape[axis] else jnp.take(x, row_R, axis=axis, mode="clip")


def _put(slots: Slots, places: Places, own: KVCache, past: int, **rows) -> Slots:
    """Puts what rows computed back where they are: keys and values, and of `Slots` what is named in `rows`."""
    keys = {"k": _put_keys(slots.k, own.k, places, past), "v": _put_keys(slots.v, own.v, places, past)}

    def put(name: str, new):
        x = getattr(slots, name)
        return x.at[places.row_R].set(new.astype(x.dtype), mode="drop", unique_indices=True)

    return _pinned(slots._replace(**keys, **{name: put(name, new) for name, new in rows.items()}))


def _put_keys(x, new, places: Places, past: int):
    """Puts [L, R, K, T, H] into the slots of rows from `used` on, where `used` is at most `past`; those of no row, and what
    would lie beyond the last slot, go nowhere."""
    row_R, used_R, length = *places, new.shape[3]
    window: tuple[int, ...]
    inserted: tuple[int, ...]
    if past + length <= x.shape[3]:  # all of a row at once
        index, window, inserted = jnp.stack([row_R, used_R], axis=1), (0, 2, 3, 4), (1,)
    else:  # a scatter leaves out whole windows
        slots_RT = used_R[:, None] + jnp.arange(length)
        index = jnp.stack([jnp.broadcast_to(row_R[:, None], slots_RT.shape), slots_RT], axis=2)
        window, inserted = (0, 2, 4), (1, 3)
    where = jax.lax.ScatterDimensionNumbers(
        update_window_dims=window, inserted_window_dims=inserted, scatter_dims_to_operand_dims=(1, 3)
    )
    return jax.lax.scatter(x, index, new.astype(x.dtype), where, mode="drop", unique_indices=True)
