"""Run by test_visits.py on eight devices: rows are left out and put back on the device that holds them."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np

from zoomearth_jax.models.attention import KVCache, Prefix, decoder_attention
from zoomearth_jax.models.sharding import make_mesh, shard_batch
from zoomearth_jax.rl.rollout.decoding import Writing, narrow, shared_by, widen

ROWS, GROUP, SLOTS, TOKENS, FIRST = 64, 4, 12, 4, 6
rng = np.random.default_rng(0)
alive = np.zeros((8, 8), bool)
for row in alive:  # at most four rows of each device go on
    row[rng.choice(8, rng.integers(0, 5), replace=False)] = True
alive = alive.reshape(-1)

mesh = make_mesh((4, 2, 1))
with jax.set_mesh(mesh):
    keys = jax.random.split(jax.random.key(0), ROWS)
    position, ids = np.arange(ROWS), rng.integers(0, 9, (ROWS, TOKENS))
    rows = shard_batch((np.arange(ROWS), position, position, ids, ids * 0.5, ids > 4, alive), mesh)
    keys = jax.device_put(keys, rows[0].sharding)
    writing = Writing(rows[0], jnp.int32(FIRST), jnp.int32(1), *rows[1:], jnp.int32(4), keys, None)
    k = rng.standard_normal((2, ROWS, 2, SLOTS, 3)).astype(np.float32)
    spec = jax.sharding.PartitionSpec(None, ("data", "fsdp"))
    k, v = (jax.device_put(x, jax.sharding.NamedSharding(mesh, spec)) for x in (k, -k))
    cache = KVCache(k, v, shard_batch(np.ones((ROWS, SLOTS), np.int32), mesh))
    prompts = rng.standard_normal((2, ROWS // GROUP, 2, 5, 3)).astype(np.float32)
    pk, pv = (jax.device_put(x, jax.sharding.NamedSharding(mesh, spec)) for x in (prompts, -prompts))
    prompts = Prefix(pk, pv, shard_batch(np.ones((ROWS // GROUP, 5), bool), mesh))
    shrink = jax.jit(narrow, static_argnames=("rows", "group"))
    small = shrink.lower(prompts, cache, writing, rows=32, group=GROUP).compile()
    moved = {"narrow": small.as_text()}
    own_prompts, small_cache, part, places = small(prompts, cache, writing)
    assert own_prompts is None
    assert sorted(np.asarray(part.row_B)[np.asarray(part.alive_B)]) == np.flatnonzero(alive).tolist()
    taken = np.asarray(part.row_B)
    np.testing.assert_array_equal(small_cache.k, np.asarray(k)[:, taken])
    np.testing.assert_array_equal(part.ids_BT, ids[taken])

    # rows that go on see their prompt, whether it is shared or, once there are as few rows as prompts, their own
    def attend(prompts, cache, writing):
        past = cache._replace(prefix=shared_by(prompts, writing.row_B, GROUP))
        past, samples_B1 = past.with_arrays(jax.tree.map(lambda x: x[0], past.arrays())), jnp.ones((32, 1), jnp.int32)
        q_BTNH, k_BKTH = jnp.ones((32, 1, 4, 3)), jnp.ones((32, 2, 1, 3))
        return decoder_attention(q_BTNH, k_BKTH, k_BKTH, samples_B1, past, "xla")

    reads = jax.jit(attend).lower(prompts, small_cache, part).compile()
    moved["attention"] = reads.as_text()
    seen = np.concatenate([np.asarray(pk)[0, taken // GROUP], np.asarray(k)[0, taken], np.ones((32, 2, 1, 3))], 2)
    weights = np.exp(seen.sum(-1) * 3**-0.5)[..., None]
    values = np.concatenate([-seen[:, :, :-1], seen[:, :, -1:]], axis=2)
    want = (weights * values).sum(2) / weights.sum(2)
    got = np.asarray(reads(prompts, small_cache, part))
    np.testing.assert_allclose(got, want.repeat(2, 1)[:, None], atol=1e-5)
    fewer = shrink.lower(prompts, small_cache, part, rows=16, group=GROUP).compile()
    moved["narrow to one row a prompt"] = fewer.as_text()
    own_prompts, _, few, _ = fewer(prompts, small_cache, part)
    np.testing.assert_array_equal(own_prompts.k, np.asarray(pk)[:, np.asarray(few.row_B) // GROUP])
    # rows that go on write: their turn's slots change, and all that is theirs comes back
    part = part._replace(ids_BT=part.ids_BT + 100, position_B=part.position_B + 1)
    written = KVCache(small_cache.k.at[..., FIRST : FIRST + TOKENS, :].add(1.0), small_cache.v, small_cache.samples_BS)
    wide = jax.jit(widen).lower(cache, writing, written, part, places).compile()
    moved["widen"] = wide.as_text()
    whole, after = wide(cache, writing, written, part, places)
    expected = np.array(k)
    expected[:, taken, :, FIRST : FIRST + TOKENS] += 1
    np.testing.assert_array_equal(whole.k, expected)
    np.testing.assert_array_equal(whole.v, v)
    expected = ids.copy()
    expected[taken] += 100
    np.testing.assert_array_equal(after.ids_BT, expected)
    np.testing.assert_array_equal(after.row_B, np.arange(ROWS))
for name, text in moved.items():
    found = re.findall(r"(?:all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter)[\w.-]*\(", text)
    assert not found, f"{name} moves rows between devices: {found}"
print(json.dumps("ok"))
