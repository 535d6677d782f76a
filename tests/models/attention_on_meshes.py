"""Sharded splash attention against unsharded XLA on eight simulated devices; test_attention.py runs it as a process."""

import functools
import json

import jax
import numpy as np
from jax.sharding import NamedSharding

from zoomearth_jax.models.attention import KVCache, decoder_attention, one_sample
from zoomearth_jax.models.sharding import make_mesh, partition_spec, shard_batch

# two key-value heads: both on every device, one each, and one for every two devices
MESHES = [(8, 1, 1), (2, 2, 2), (2, 1, 4)]


def value_and_gradients(backend, arrays, valid_BT):
    """Output, and the gradients of the sum of its cube."""

    def score(arrays):
        q, k, v, *past = arrays
        out = decoder_attention(q, k, v, one_sample(valid_BT), KVCache(*past, one_sample(~valid_BT)), backend)
        return (out**3).sum(), out

    return jax.jit(jax.value_and_grad(score, has_aux=True))(arrays)


def main() -> None:
    keys = jax.random.split(jax.random.key(0), 6)
    arrays = [jax.random.normal(keys[0], (8, 128, 4, 16))]
    arrays += [jax.random.normal(key, (8, 2, 128, 16)) for key in keys[1:5]]
    valid_BT = jax.random.bernoulli(keys[5], 0.5, (8, 128))
    want = value_and_gradients("xla", arrays, valid_BT)
    for shape in MESHES:
        mesh = make_mesh(shape)
        with jax.set_mesh(mesh):
            got = value_and_gradients("splash", *shard_batch((arrays, valid_BT), mesh))
        spec = partition_spec(("batch", None, "heads", None), arrays[0].shape, mesh)
        out = got[0][1]
        assert out.sharding.is_equivalent_to(NamedSharding(mesh, spec), out.ndim), (shape, out.sharding)
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-5, rtol=2e-5), got, want)
    print(json.dumps([list(shape) for shape in MESHES]))


if __name__ == "__main__":
    main()
