"""Every attention backend against the XLA path, in values and gradients; on a mesh; the cost of windows."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType

from tests.processes import result, start
from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.errors import UserError
from zoomearth_jax.models import attention
from zoomearth_jax.models.attention import (
    KVCache,
    Prefix,
    choose_backend,
    decoder_attention,
    masked_attention,
    one_sample,
)
from zoomearth_jax.models.layers import Places
from zoomearth_jax.models.presets import nano
from zoomearth_jax.models.qwen2_5_vl.config import VisionConfig
from zoomearth_jax.models.qwen2_5_vl.decoder import Decoder
from zoomearth_jax.models.qwen2_5_vl.patches import vision_layout
from zoomearth_jax.models.qwen2_5_vl.vision import VisionBlock
from zoomearth_jax.models.rope import vision_angles
from zoomearth_jax.models.sharding import MESH_AXES

TOLERANCE = 2e-5  # absolute, fp32


@pytest.fixture(params=["splash", "cudnn"])
def backend(request, monkeypatch):
    """Each fused backend; the call to cuDNN is computed by JAX's own implementation of the same function."""
    if request.param == "cudnn":
        call = jax.nn.dot_product_attention
        monkeypatch.setattr(
            jax.nn, "dot_product_attention", lambda *args, **kwargs: call(*args, **kwargs | {"implementation": "xla"})
        )
        monkeypatch.setattr(attention, "choose_backend", lambda backend, *_: backend)
    return request.param


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def validity(kind, batch, length):
    """Right-padded (two rows differ), gappy, or left-padded rows."""
    index = np.arange(length)
    if kind == "right":
        return jnp.asarray(np.stack([index < length - 37 * (b % 2) - 3 for b in range(batch)]))
    if kind == "left":
        return jnp.asarray(np.stack([index >= 29 for _ in range(batch)]))
    return jax.random.bernoulli(jax.random.key(9), 0.6, (batch, length))


def values_and_gradients(attend, arrays, weights_BTNH):
    """Outputs, and the gradients of their weighted sum by each array."""

    def score(arrays):
        out = attend(*arrays)
        return (out * weights_BTNH).sum(), out

    grads, out = jax.jit(jax.grad(score, has_aux=True))(arrays)
    return np.asarray(out), jax.tree.map(np.asarray, grads)


def decoder_case(heads, kv_heads, width, length, slots, kind, batch=2):
    """Arrays, the function of them and a backend, and which queries see a valid key."""
    arrays = [normal(0, batch, length, heads, width)] + [normal(i, batch, kv_heads, length, width) for i in (1, 2)]
    valid, past_valid = validity(kind, batch, length), validity(kind, batch, slots)
    arrays += [normal(i, batch, kv_heads, slots, width) for i in (3, 4) if slots]

    def attend(backend, q, k, v, *past):
        cache = KVCache(*past, one_sample(past_valid)) if past else None
        return decoder_attention(q, k, v, one_sample(valid), cache, backend)

    return arrays, attend, np.cumsum(valid, axis=1) + np.sum(past_valid, axis=1, keepdims=True) > 0


@pytest.mark.parametrize(
    "case",
    [
        (3, 3, 80, 150, 0, "right"),
        (4, 2, 128, 128, 75, "gappy"),
        (8, 1, 16, 131, 130, "right"),
    ],
)
def test_decoder_backends_equal_xla(backend, case):
    arrays, attend, sees_BT = decoder_case(*case)
    weights = jnp.where(sees_BT[..., None, None], normal(5, *arrays[0].shape), 0.0)
    want, want_grads = values_and_gradients(functools.partial(attend, "xla"), arrays, weights)
    got, got_grads = values_and_gradients(functools.partial(attend, backend), arrays, weights)
    np.testing.assert_allclose(got[sees_BT], want[sees_BT], atol=TOLERANCE)
    for got_grad, want_grad in zip(got_grads, want_grads, strict=True):
        assert np.abs(want_grad).max() > 0.1  # the tolerance means something
        np.testing.assert_allclose(got_grad, want_grad, atol=TOLERANCE)


def test_large_pictures_attend_in_blocks(monkeypatch):
    """As all at once, in values and gradients, also where the last block isn't full; no array of all scores exists."""
    arrays, weights = [normal(i, 2, 150, 4, 16) for i in range(3)], normal(3, 2, 150, 4, 16)
    valid = validity("right", 2, 150)
    want, want_grads = values_and_gradients(lambda *x: masked_attention(*x, valid, "xla"), arrays, weights)
    monkeypatch.setattr(attention, "QUERY_BLOCK", 64)
    monkeypatch.setattr(attention, "WHOLE_QUERIES", 128)
    got, grads = values_and_gradients(lambda *x: masked_attention(*x, valid, "xla"), arrays, weights)
    np.testing.assert_allclose(got, want, atol=TOLERANCE)
    for grad, want_grad in zip(grads, want_grads, strict=True):
        np.testing.assert_allclose(grad, want_grad, atol=TOLERANCE)
    assert "f32[2,4,64,150]" in (text := str(jax.make_jaxpr(lambda *x: masked_attention(*x, valid, "xla"))(*arrays)))
    assert "f32[2,4,150,150]" not in text


def test_packed_rows_attend_within_samples(backend, monkeypatch):
    """Each sample of a packed row is as it would be alone, in values and gradients; padding stays finite."""
    monkeypatch.setattr(attention, "QUERY_BLOCK", 64)
    samples = np.repeat([[1] * 90 + [2] * 41 + [0] * 9], 2, axis=0)
    arrays = [normal(0, 2, 140, 4, 16)] + [normal(i, 2, 2, 140, 16) for i in (1, 2)]
    weights = jnp.where((samples > 0)[..., None, None], normal(3, *arrays[0].shape), 0.0)

    def alone(q, k, v):
        parts = [
            decoder_attention(
                q[:, i], k[:, :, i], v[:, :, i], jnp.ones((2, i.stop - i.start), jnp.int32), backend="xla"
            )
            for i in (slice(0, 90), slice(90, 131), slice(131, 140))
        ]
        return jnp.concatenate(parts, axis=1)

    want, want_grads = values_and_gradients(alone, arrays, weights)
    for name in ("xla", backend):
        got, grads = values_and_gradients(
            lambda q, k, v, name=name: decoder_attention(q, k, v, jnp.asarray(samples), None, name), arrays, weights
        )
        assert np.isfinite(got).all()
        np.testing.assert_allclose(got[samples > 0], want[samples > 0], atol=TOLERANCE)
        for grad, want_grad in zip(grads, want_grads, strict=True):
            np.testing.assert_allclose(grad, want_grad, atol=TOLERANCE)


def test_a_query_sees_only_its_own_sample_of_the_past(backend):
    (q, k, v, *past), _, _ = decoder_case(2, 1, 16, 128, 64, "right")
    own, before = jnp.full((2, 128), 2, jnp.int32), jnp.repeat(jnp.array([[1] * 40 + [2] * 24]), 2, axis=0)
    want = decoder_attention(q, k, v, own, KVCache(*(x[:, :, 40:] for x in past), before[:, 40:]), "xla")
    for name in ("xla", backend):
        got = decoder_attention(q, k, v, own, KVCache(*past, before), name)
        np.testing.assert_allclose(got, want, atol=TOLERANCE)


@pytest.mark.parametrize(("length", "slots"), [(1, 9), (5, 0), (128, 40)])
def test_a_shared_prefix_is_a_copy_in_each_row(backend, length, slots):
    """Two prompts of 33 slots, three rows each: as if every row's past began with its prompt, in values and gradients."""
    arrays = [normal(0, 6, length, 4, 16)] + [normal(i, 6, 2, length, 16) for i in (1, 2)]
    past, shared = ([normal(i, rows, 2, n, 16) for i in (3, 4)] for rows, n in ((6, slots), (2, 33)))
    own, before, prompt = (validity("gappy", *shape) for shape in ((6, length), (6, slots), (2, 33)))
    own = own.at[:, 0].set(True)

    def attend(name, is_shared, q, k, v, past_k, past_v, shared_k, shared_v):
        cache = KVCache(past_k, past_v, one_sample(before), Prefix(shared_k, shared_v, prompt))
        if not is_shared:
            copies = [
                jnp.concatenate([jnp.repeat(x, 3, 0), y], 2) for x, y in zip(cache.prefix[:2], cache[:2], strict=True)
            ]
            cache = KVCache(*copies, jnp.concatenate([jnp.repeat(one_sample(prompt), 3, 0), one_sample(before)], 1))
        return decoder_attention(q, k, v, one_sample(own), cache, name)

    weights = jnp.where(own[..., None, None], normal(5, *arrays[0].shape), 0.0)
    arrays = [*arrays, *past, *shared]
    want, want_grads = values_and_gradients(functools.partial(attend, "xla", False), arrays, weights)
    for name in ("xla", backend) if length == 128 else ("xla",):
        got, grads = values_and_gradients(functools.partial(attend, name, True), arrays, weights)
        np.testing.assert_allclose(got[own], want[own], atol=1e-6 if name == "xla" else TOLERANCE)
        for grad, want_grad in zip(grads, want_grads, strict=True):
            np.testing.assert_allclose(grad, want_grad, atol=TOLERANCE)
    assert np.abs(want_grads[-1]).max() > 0.1


def test_rows_left_out_leave_the_prefix_as_it_is():
    """Of two shards with a prompt each, rows 2 and 0, and rows 1 and 2 of three: each as among all."""
    q, (k, v, own_k, own_v) = normal(0, 6, 1, 4, 16), [normal(i, 6, 2, 7, 16) for i in range(1, 5)]
    k, v, samples = k[:, :, :1], v[:, :, :1], jnp.ones((6, 7), jnp.int32)
    prefix = Prefix(normal(5, 2, 2, 33, 16), normal(6, 2, 2, 33, 16), validity("gappy", 2, 33))
    want = decoder_attention(q, k, v, samples[:, :1], KVCache(own_k, own_v, samples, prefix), "xla")
    kept, rows = np.array([[2, 0], [1, 2]]), np.array([2, 0, 4, 5])
    some = prefix._replace(places=Places(kept, np.array([[1, 2, 0], [2, 0, 1]])))
    past = KVCache(own_k[rows], own_v[rows], samples[:4], some)
    got = decoder_attention(q[rows], k[rows], v[rows], samples[:4, :1], past, "xla")
    np.testing.assert_allclose(got, want[rows], atol=1e-6)


def test_decoding_reads_a_prefix_once_a_group():
    """No array of the compiled step has the prompt's slots once per row."""
    q, own = normal(0, 6, 1, 4, 16), normal(1, 6, 2, 7, 16)
    shared, samples = normal(2, 2, 2, 33, 16), jnp.ones((6, 7), jnp.int32)
    past = KVCache(own, own, samples, Prefix(shared, shared, jnp.ones((2, 33), bool)))
    step = jax.jit(lambda past: decoder_attention(q, own[:, :, :1], own[:, :, :1], samples[:, :1], past, "xla"))
    text = step.lower(past).compile().as_text()
    assert "f32[2,2,33,16]" in text
    assert not re.findall(r"f32\[6,2,(?:33|40|41),16\]", text)


def test_vision_backends_equal_xla(backend):
    arrays, valid = [normal(i, 2, 150, 2, 80) for i in range(3)], validity("right", 2, 150)
    run = [
        values_and_gradients(lambda q, k, v, b=b: masked_attention(q, k, v, valid, b), arrays, normal(3, 2, 150, 2, 80))
        for b in ("xla", backend)
    ]
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=TOLERANCE), *run)


def test_queries_that_see_nothing_stay_finite(backend):
    arrays, attend, sees_BT = decoder_case(2, 1, 16, 128, 0, "left")
    assert not sees_BT.all()
    for name in ("xla", backend):
        out, grads = values_and_gradients(functools.partial(attend, name), arrays, 1.0)
        assert all(np.isfinite(x).all() for x in (out, *grads))


@pytest.mark.parametrize(
    ("backend", "platform", "dtype", "length", "width", "want"),
    [
        ("auto", "cpu", "bfloat16", 512, 128, "xla"),
        ("auto", "tpu", "float32", 512, 128, "splash"),
        ("auto", "gpu", "bfloat16", 512, 80, "cudnn"),
        ("auto", "gpu", "float32", 512, 80, "xla"),
        ("auto", "gpu", "float16", 512, 20, "xla"),
        ("auto", "tpu", "bfloat16", 1, 128, "xla"),
        ("cudnn", "gpu", "bfloat16", 64, 80, "xla"),
        ("splash", "cpu", "float32", 128, 16, "splash"),
    ],
)
def test_choice_of_backend(backend, platform, dtype, length, width, want):
    assert choose_backend(backend, platform, jax.ShapeDtypeStruct((1, length, 2, width), dtype)) == want


@pytest.mark.parametrize(
    ("platform", "dtype", "match"), [("cpu", "bfloat16", "needs a GPU, not cpu"), ("gpu", "float32", "got float32")]
)
def test_cudnn_says_why_it_cannot_serve(platform, dtype, match):
    with pytest.raises(UserError, match=match):
        choose_backend("cudnn", platform, jax.ShapeDtypeStruct((1, 512, 2, 80), dtype))


@pytest.mark.parametrize(("length", "slots"), [(1408, 0), (326, 896)])
def test_kernels_lower_for_a_tpu_that_is_not_here(length, slots):
    """The 3B model's shapes in a described mesh: "auto" is splash there, three kernels of forward and backward."""
    device = jax.sharding.AbstractDevice("TPU v5 lite", 1, "tpu")
    mesh = AbstractMesh((2, 1, 2), MESH_AXES, axis_types=(AxisType.Auto,) * 3, abstract_device=device)
    _, attend, _ = decoder_case(16, 2, 1, length, slots, "right")
    shapes = [(2, length, 16, 128), *[(2, 2, length, 128)] * 2, *[(2, 2, slots, 128)] * (2 if slots else 0)]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    with jax.sharding.use_abstract_mesh(mesh):
        grad = jax.jit(jax.grad(lambda arrays: attend("auto", *arrays).astype(jnp.float32).sum()))
        text = grad.trace(arrays).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") == 3


@pytest.mark.slow
def test_decoder_trains_the_same_with_splash():
    config, valid = dataclasses.replace(nano()[0].text, num_layers=2), validity("gappy", 1, 128)
    positions = jnp.broadcast_to(jnp.arange(128), (3, 1, 128))

    def gradient(compute):
        graph, params = nnx.split(Decoder(config, compute=compute, rngs=nnx.Rngs(0)))

        @jax.jit
        @jax.grad
        def grad(params):
            hidden, _ = nnx.merge(graph, params)(normal(0, 1, 128, config.width), positions, valid)
            return jnp.where(valid, (hidden**3).sum(-1), 0).mean()

        return nnx.to_pure_dict(grad(params))

    want, got = gradient(ComputeConfig(attention="xla")), gradient(ComputeConfig(attention="splash", remat="full"))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=TOLERANCE), got, want)


@pytest.mark.slow
def test_meshes_change_nothing():
    assert result(start("models/attention_on_meshes.py", 8)) == [[8, 1, 1], [2, 2, 2], [2, 1, 4]]


@pytest.mark.parametrize(("is_full", "power"), [(False, 2), (True, 4)])
def test_windowed_attention_is_linear_in_patches_and_full_is_quadratic(is_full, power):
    config = VisionConfig(depth=1, width=8, num_heads=1, mlp_dim=8, out_dim=8)  # narrow: projections cost little
    block = VisionBlock(config, compute=ComputeConfig(), rngs=nnx.Rngs(0))

    def flops(side):
        layout = vision_layout([(side, side)], config)
        angles = vision_angles(layout.positions_IP2, config.width)
        attend = jax.jit(lambda x: block.attend(x, angles, layout, is_full))
        return attend.lower(jnp.zeros((1, side * side, config.width))).compile().cost_analysis()["flops"]

    small, middle, large = (
        flops(side) for side in (16, 32, 40)
    )  # more patches are attended to in blocks, whose loop counts once
    assert middle / small == pytest.approx((32 / 16) ** power, rel=0.05)
    assert large / middle == pytest.approx((40 / 32) ** power, rel=0.05)
