"""The device's side of a rollout: prompts and pictures into caches, and turns of sampled tokens, some tokens per call.

A turn is written in visits: between two of them the host sees which rows have stopped, and leaves these out (`narrow`). The
prompts' keys and values stay once a group. Each row's own cache grows by turn, and within a turn by buckets: its last slots
are always those of the turn that is being written, up to the bucket that this has reached.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from zoomearth_jax.configs.prune import PruneConfig
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.data_pipeline.rows.builder import TokenIds
from zoomearth_jax.models.attention import KVCache, Prefix, one_sample
from zoomearth_jax.models.family import Images, VisionLanguageModel
from zoomearth_jax.models.layers import Places
from zoomearth_jax.models.pruning import pruned_views
from zoomearth_jax.models.sharding import constrain, row_axes, row_shards
from zoomearth_jax.rl.policy import last_valid, repeat_cache, repeat_rows
from zoomearth_jax.rl.rollout.sampling import mark_seen, sample


class Writing(NamedTuple):
    """B rows that write a turn, at most T tokens each.

    Attributes:
        row_B: which of the batch's rows each is.
        first: the cache's slot of the turn's first token. step: tokens that a row has written which didn't stop.
        start_B: position of the first token. position_B: that of the last one written.
        ids_BT, logps_BT, written_BT: tokens, their log-probabilities, and which of them exist (stop tokens included).
        alive_B: rows that go on. most_alive: of them on one device, on the fullest.
        keys_B: random keys. seen_BV: the ids that each row holds, where the repetition penalty asks for them.
    """

    row_B: jax.Array
    first: jax.Array
    step: jax.Array
    start_B: jax.Array
    position_B: jax.Array
    ids_BT: jax.Array
    logps_BT: jax.Array
    written_BT: jax.Array
    alive_B: jax.Array
    most_alive: jax.Array
    keys_B: jax.Array
    seen_BV: jax.Array | None


class Ready(NamedTuple):
    """B rows that are about to write a turn.

    Attributes:
        hidden_BD: the state that predicts the first token. start_B: that token's position.
        cache: its last slots, from `first` on, are the turn's first ones, empty. seen_BV: see `Writing`.
    """

    hidden_BD: jax.Array
    cache: KVCache
    first: jax.Array | int
    start_B: jax.Array
    seen_BV: jax.Array | None = None


def _pin(x):
    """Keeps each row's part of a cache on the devices that hold the row."""
    return constrain(x, *row_axes(x))


def append_to_cache(cache: KVCache, own: KVCache, offset) -> KVCache:
    """Puts a segment's keys and values into the cache's slots from `offset` on."""
    k = _pin(jax.lax.dynamic_update_slice_in_dim(cache.k, own.k, offset, axis=3))
    v = _pin(jax.lax.dynamic_update_slice_in_dim(cache.v, own.v, offset, axis=3))
    samples_BS = _pin(jax.lax.dynamic_update_slice_in_dim(cache.samples_BS, own.samples_BS, offset, axis=1))
    return cache._replace(k=k, v=v, samples_BS=samples_BS)


def grow_cache(cache: KVCache, slots: int) -> KVCache:
    """Appends empty slots to a cache."""
    k, v = (_pin(jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, slots), (0, 0)))) for x in (cache.k, cache.v))
    return cache._replace(k=k, v=v, samples_BS=_pin(jnp.pad(cache.samples_BS, ((0, 0), (0, slots)))))


def empty_cache(prefix: Prefix, rows: int, slots: int) -> KVCache:
    """The cache of rows that share a prefix and have nothing of their own yet."""
    layers, _, heads, _, width = prefix.k.shape
    k, v = (_pin(jnp.zeros((layers, rows, heads, slots, width), x.dtype)) for x in (prefix.k, prefix.v))
    return KVCache(k, v, _pin(jnp.zeros((rows, slots), jnp.int32)), prefix)


def _read_views(model: VisionLanguageModel, ids, valid, images: Images, prune: PruneConfig):
    """Visual tokens [B, M, D] of the pictures of slots, and which of the pictures' they are: None for all."""
    if prune.kind == "none":
        return model.encode_views(images), None
    return pruned_views(model, images, prune, ((ids == model.config.image_token_id) & valid).sum(1))


def prefill(
    model: VisionLanguageModel,
    ids,
    valid,
    images: Images,
    group: int,
    slots: int,
    prune: PruneConfig = PruneConfig(),
):
    """Encodes the overviews of A prompts and runs each prompt once, for all of its G samples.

    Args:
        ids, valid: prompt slots [A, prompt_len].
        slots: empty ones of each sample.
        prune: that of the slots' layout.

    Returns:
        visual tokens [A, M, D]; of each sample [A x G]: the state that predicts its first token, its cache with the prompts as
        prefix, and that token's position.
    """
    features, kept = _read_views(model, ids, valid, images, prune)
    hidden, cache, next_A = model.segment(ids, one_sample(valid), features, images.grids, kept_BM=kept)
    rows = len(ids) * group
    if row_shards(len(ids)) != row_shards(rows):  # groups lie on several devices: each row has a copy
        cache = repeat_cache(cache, group)
    prefix = Prefix(_pin(cache.k), _pin(cache.v), _pin(cache.samples_BS > 0))
    hidden = repeat_rows(last_valid(hidden, valid), group)
    return features, hidden, empty_cache(prefix, rows, slots), repeat_rows(next_A, group)


def shared_by(prompts: Prefix, row_B, group: int) -> Prefix:
    """The prompts as rows see them of which some were left out.

    Args:
        row_B: which of the batch's rows each is.
        group: rows of each prompt in the whole batch; where there are as many prompts as rows, each row has its own.
    """
    rows, whole = len(row_B), prompts.k.shape[1] * group
    if rows in (prompts.k.shape[1], whole):
        return prompts
    kept = _own_places(row_B, whole)
    shards, left = kept.shape
    order = jnp.tile(jnp.arange(left), shards)
    places = _put(jnp.full(whole, left), order, kept)
    return prompts._replace(places=Places(kept, places.reshape(shards, -1)))


def _own_places(row_B, whole: int):
    """Places [shards, rows of one shard] of rows among those of their shard of the whole batch."""
    shards = row_shards(len(row_B))
    return constrain((row_B % (whole // shards)).reshape(shards, -1), "rows", None)


def append_pictures(
    model: VisionLanguageModel,
    cache: KVCache,
    ids,
    valid,
    images: Images,
    start_B,
    slots: int,
    prune: PruneConfig = PruneConfig(),
):
    """Encodes pictures and appends them to their rows' caches, with `slots` empty slots after them.

    Args:
        ids, valid: picture slots [B, picture_len]; rows without a picture have no valid token.
        start_B: position of the picture's first token.
        prune: that of the slots' layout.

    Returns:
        visual tokens [B, M, D], the state that predicts the next token, the cache, and that token's position.
    """
    features, kept = _read_views(model, ids, valid, images, prune)
    offset = cache.k.shape[3]
    hidden, own, next_B = model.segment(ids, one_sample(valid), features, images.grids, start_B, cache, kept)
    cache = append_to_cache(grow_cache(cache, ids.shape[1] + slots), own, offset)
    return features, last_valid(hidden, valid), cache, next_B


class Sampler(NamedTuple):
    """How tokens are drawn: the special ids, the temperature, which may be traced, and the filters."""

    tokens: TokenIds
    temperature: jax.Array | float
    filters: SamplingConfig = SamplingConfig()

    def begin(self, model: VisionLanguageModel, ready: Ready, length: int, alive_B, keys_B) -> Writing:
        """Draws the first token of a turn.

        Args:
            length: the turn's slots (T).
            alive_B: rows that write at all; None for all.
            keys_B: see `Writing`.
        """
        batch = len(ready.hidden_BD)
        writing = Writing(
            row_B=jnp.arange(batch),
            first=jnp.int32(ready.first),
            step=jnp.int32(0),
            start_B=ready.start_B,
            position_B=ready.start_B,
            ids_BT=jnp.full((batch, length), self.tokens.pad_id, jnp.int32),
            logps_BT=jnp.zeros((batch, length)),
            written_BT=jnp.zeros((batch, length), bool),
            alive_B=jnp.ones(batch, bool) if alive_B is None else alive_B,
            most_alive=jnp.int32(0),
            keys_B=keys_B,
            seen_BV=ready.seen_BV,
        )
        writing = _known_to_all(writing)
        return _counted(self._draw(model, ready.hidden_BD, writing, writing.start_B))

    def _draw(self, model, hidden_BD, writing: Writing, position_B) -> Writing:
        """Draws one more token for every row that goes on."""
        step, alive_B = writing.step, writing.alive_B
        step_keys_B = jax.vmap(jax.random.fold_in, (0, None))(writing.keys_B, step)
        logits_BV = model.logits(constrain(hidden_BD, "batch", None))
        token_B, logp_B = sample(
            logits_BV, step_keys_B, self.temperature, self.tokens.banned_ids, self.filters, writing.seen_BV
        )
        going_B = alive_B & ~jnp.isin(token_B, jnp.array(self.tokens.stop_ids))
        return writing._replace(
            step=step + 1,
            position_B=position_B,
            ids_BT=writing.ids_BT.at[:, step].set(jnp.where(alive_B, token_B, self.tokens.pad_id)),
            logps_BT=writing.logps_BT.at[:, step].set(jnp.where(alive_B, logp_B, 0.0)),
            written_BT=writing.written_BT.at[:, step].set(alive_B),
            alive_B=going_B,
            seen_BV=mark_seen(writing.seen_BV, token_B[:, None], going_B[:, None]),
        )

    def go_on(
        self, model: VisionLanguageModel, cache: KVCache, writing: Writing, tokens: int
    ) -> tuple[KVCache, Writing]:
        """Writes up to `tokens` more per row, until all rows have stopped or are full; the last token stays out of the cache."""
        until = jnp.minimum(writing.step + tokens, writing.ids_BT.shape[1])

        def going(loop):
            return (loop[1].step < until) & loop[1].alive_B.any()

        def body(loop):
            cache, writing = loop
            hidden, cache, next_B = _read_last(model, cache, writing)
            return cache, _known_to_all(self._draw(model, hidden[:, 0], writing, next_B))

        cache, writing = jax.lax.while_loop(going, body, (cache, _known_to_all(writing)))
        return cache, _counted(writing)


def _read_last(model: VisionLanguageModel, cache: KVCache, writing: Writing):
    """Runs the last token of the rows that go on: its state, the cache with it, and the position after it."""
    last_B1 = jax.lax.dynamic_slice_in_dim(writing.ids_BT, writing.step - 1, 1, axis=1)
    samples_B1 = one_sample(writing.alive_B[:, None])
    hidden, own, next_B = model.segment(last_B1, samples_B1, start_B=writing.position_B, past=cache)
    return hidden, append_to_cache(cache, own, writing.first + writing.step - 1), next_B


def close(model: VisionLanguageModel, cache: KVCache, writing: Writing) -> tuple[KVCache, jax.Array]:
    """The cache with the last token of rows that filled their slots, and the position [B] after every row's turn.

    The cache has all slots of the turn, as for `reread`.
    """
    _, cache, next_B = _read_last(model, cache, writing)
    return cache, next_B


def reread(model: VisionLanguageModel, cache: KVCache, writing: Writing, ids_BT, valid_BT) -> tuple[KVCache, jax.Array]:
    """The same as `close`, with other tokens in place of those that were sampled."""
    first = cache.k.shape[3] - writing.ids_BT.shape[1]
    k, v, samples_BS = cache.k[:, :, :, :first], cache.v[:, :, :, :first], cache.samples_BS[:, :first]
    past = cache._replace(k=k, v=v, samples_BS=samples_BS)
    _, own, next_B = model.segment(ids_BT, one_sample(valid_BT), start_B=writing.start_B, past=past)
    return append_to_cache(cache, own, first), next_B


def _counted(writing: Writing) -> Writing:
    """The `Writing` that leaves a program, with `most_alive` counted."""
    alive = writing.alive_B.reshape(row_shards(len(writing.alive_B)), -1).sum(axis=1).max()
    return _laid_out(writing)._replace(most_alive=constrain(alive), step=constrain(writing.step))


def _known_to_all(writing: Writing) -> Writing:
    """What rows write is known to all devices of a sampler's group, which have their states together; what rows hold is not."""

    seen_BV = writing.seen_BV if writing.seen_BV is None else constrain(writing.seen_BV, *row_axes(writing.seen_BV))
    shared = jax.tree.map(lambda x: constrain(x, *["batch", *[None] * (x.ndim - 1)][: x.ndim]), writing)
    return shared._replace(seen_BV=seen_BV)


def _laid_out(writing: Writing) -> Writing:
    """Lays what the host reads with its rows, so that each process finds its own."""
    read = {name: getattr(writing, name) for name in ("row_B", "alive_B", "ids_BT", "logps_BT", "written_BT")}
    return writing._replace(**{name: constrain(x, *row_axes(x)) for name, x in read.items()})


def narrow(
    prompts: Prefix, cache: KVCache, writing: Writing, rows: int, group: int
) -> tuple[Prefix | None, KVCache, Writing, jax.Array]:
    """The first `rows` rows of those that go on, each on the device it is on, filled up with others.

    Args:
        prompts, group: see `shared_by`.

    Returns:
        a copy of each row's prompt, where there are no more rows than prompts: fewer to read (None elsewhere, where the prompts
        stay as they are); their cache and writing, and their places [shards, rows / shards] among the rows of their device.
    """
    shards = row_shards(len(writing.alive_B))
    order = jnp.argsort(~writing.alive_B.reshape(shards, -1), axis=1, stable=True)
    places = order[:, : rows // shards]
    k, v = (_pin(_pick(x, places, 1)) for x in (cache.k, cache.v))
    left = _laid_out(jax.tree.map(lambda x: _pick(x, places) if x.ndim else x, writing))
    own, questions = None, prompts.k.shape[1]
    if rows <= questions:
        alone = questions == len(writing.alive_B)
        asked = places if alone else _own_places(left.row_B, questions * group) // group
        prompt_k, prompt_v = (_pin(_pick(x, asked, 1)) for x in (prompts.k, prompts.v))
        own = Prefix(prompt_k, prompt_v, _pin(_pick(prompts.valid_AU, asked)))
    return own, KVCache(k, v, _pin(_pick(cache.samples_BS, places))), left, places


def widen(cache: KVCache | None, writing: Writing, small_cache: KVCache | None, small: Writing, places):
    """Puts rows back that `narrow` took out; of the cache only the turn's own slots, if there is a cache to go on with: all of
    them, in both caches."""
    writing = jax.tree.map(lambda x, new: _put(x, new, places) if x.ndim else new, writing, small)
    writing = _laid_out(writing)
    if cache is None or small_cache is None:
        return None, writing

    def slots(x, axis):
        return jax.lax.dynamic_slice_in_dim(x, writing.first, writing.ids_BT.shape[1], axis)

    k, v = (
        _put(slots(x, 3), slots(new, 3), places, 1) for x, new in ((cache.k, small_cache.k), (cache.v, small_cache.v))
    )
    samples_BT = _put(slots(cache.samples_BS, 1), slots(small_cache.samples_BS, 1), places)
    return append_to_cache(cache, KVCache(k, v, samples_BT), writing.first), writing


def _split(x, shards: int, axis: int):
    return x.reshape(*x.shape[:axis], shards, -1, *x.shape[axis + 1 :])


def _pick(x, places, axis: int = 0):
    """Takes rows along `axis`, each shard its own; `places` [shards, rows of one shard]."""

    def one(x, place):
        return x[:, place] if axis else x[place]

    picked = jax.vmap(one, (axis, 0), axis)(_split(x, len(places), axis), places)
    return picked.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])


def _put(x, rows, places, axis: int = 0):
    """The inverse of `_pick`."""

    def one(x, rows, place):
        return x.at[:, place].set(rows) if axis else x.at[place].set(rows)

    shards = len(places)
    return jax.vmap(one, (axis, axis, 0), axis)(_split(x, shards, axis), _split(rows, shards, axis), places).reshape(
        x.shape
    )
