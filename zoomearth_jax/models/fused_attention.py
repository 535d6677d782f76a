"""Attention that never holds the scores: cuDNN's on GPUs, splash attention (Pallas) on TPUs, on each device's rows and heads."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import PartitionSpec

from zoomearth_jax.models.sharding import partition_spec

LANES = 128  # splash blocks are multiples of a TPU tile's width
MAX_BLOCK = 512  # wide enough for the matrix unit, small enough for the scores of a block to stay in fast memory


def compile_platform() -> str:
    """The platform, cpu, gpu or tpu: that of the mesh in context, which may describe devices that aren't here, else the default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def fused_attention(q_BTNH, k_BSKH, v_BSKH, samples_BT, samples_BS, *, causal: bool, backend: str):
    """Grouped-query attention by a kernel; the compiler can't partition kernels, so each device of the mesh runs its own.

    Rows go along data and fsdp, query heads along tensor. Each shard takes the key-value heads that its query heads use:
    its own part of them, or a copy where there are fewer than shards.

    Args:
        samples_BT, samples_BS: sample numbers of queries and keys, int32, from 1; 0 is padding. A query sees the keys with
            its own number.
        causal: query t sees the keys up to t + S - T, otherwise all.
        backend: "cudnn" or "splash"; off a TPU splash is interpreted, slowly.

    Returns:
        [B, T, N, H] in the type of q; where a query sees no key, undefined but finite.
    """
    samples_BT, samples_BS = samples_BT.astype(jnp.int32), samples_BS.astype(jnp.int32)
    if backend == "splash":
        kernel = functools.partial(_splash, causal=causal, interpret=compile_platform() != "tpu")
    else:
        kernel = functools.partial(_cudnn, causal=causal)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return kernel(q_BTNH, k_BSKH, v_BSKH, samples_BT, samples_BS)
    spec = partition_spec(("batch", None, "heads", None), q_BTNH.shape, mesh)
    shards, heads = 1 if spec[2] is None else mesh.shape[spec[2]], k_BSKH.shape[2]
    copies = math.lcm(heads, shards) // heads
    k_BSKH, v_BSKH = (jnp.repeat(x, copies, axis=2) for x in (k_BSKH, v_BSKH))
    specs = (spec, spec, spec, PartitionSpec(spec[0]), PartitionSpec(spec[0]))
    # pallas_call doesn't say along which axes its outputs vary: no check of it
    kernel = jax.shard_map(kernel, in_specs=specs, out_specs=spec, check_vma=False)
    return kernel(q_BTNH, k_BSKH, v_BSKH, samples_BT, samples_BS)


def _cudnn(q_BTNH, k_BSKH, v_BSKH, samples_BT, samples_BS, *, causal: bool):
    """Attention by cuDNN, which takes key lengths or a mask; rows have gaps and may be packed, so a mask.

    It becomes a bias [B, 1, T, S], which has a backward pass only at even lengths. Masked by position only (`is_causal`)
    the upper triangle is skipped; that mask starts at the first key, so it serves where there is no past.
    """
    length, offset = q_BTNH.shape[1], k_BSKH.shape[1] - q_BTNH.shape[1]
    q_BTNH, k_BSKH, v_BSKH, samples_BT, samples_BS = (
        _pad(x, 2) for x in (q_BTNH, k_BSKH, v_BSKH, samples_BT, samples_BS)
    )
    shape = (q_BTNH.shape[1], k_BSKH.shape[1])
    seen_TS = jnp.tri(*shape, offset, dtype=bool) if causal else jnp.ones(shape, bool)
    out_BTNH = jax.nn.dot_product_attention(
        q_BTNH,
        k_BSKH,
        v_BSKH,
        mask=(seen_TS & (samples_BT[:, :, None] == samples_BS[:, None]))[:, None],
        is_causal=causal and offset == 0,
        implementation="cudnn",
    )
    return out_BTNH[:, :length]


def _splash(q_BTNH, k_BSKH, v_BSKH, samples_BT, samples_BS, *, causal: bool, interpret: bool):
    """Splash attention; causal blocks above the diagonal are skipped, padding, gaps and other samples are other segments."""
    _, length, num_heads, head_dim = q_BTNH.shape
    slots = k_BSKH.shape[1]
    block_q, block_kv = _block(length), _block(slots)
    q_BTNH, samples_BT = _pad(q_BTNH * head_dim**-0.5, block_q), _pad(samples_BT, block_q)
    k_BSKH, v_BSKH, samples_BS = (_pad(x, block_kv) for x in (k_BSKH, v_BSKH, samples_BS))
    shape = (q_BTNH.shape[1], k_BSKH.shape[1])
    mask = splash.CausalMask(shape, offset=slots - length) if causal else splash.FullMask(shape)
    kernel = splash.make_splash_mha_single_device(
        splash.MultiHeadMask([mask] * num_heads),
        block_sizes=splash.BlockSizes(
            block_q=block_q,
            block_kv=block_kv,
            block_q_dkv=block_q,
            block_kv_dkv=block_kv,
            block_q_dq=block_q,
            block_kv_dq=block_kv,
        ),
        interpret=interpret,
    )
    segments = splash.SegmentIds(samples_BT, samples_BS)
    out_BNTH = jax.vmap(kernel)(*(x.swapaxes(1, 2) for x in (q_BTNH, k_BSKH, v_BSKH)), segments)
    return out_BNTH.swapaxes(1, 2)[:, :length]


def _block(length: int) -> int:
    """Size of equal blocks, as few as cover the length."""
    return LANES * -(-length // (LANES * -(-length // MAX_BLOCK)))


def _pad(x, multiple: int):
    """Pads the second dimension at its end."""
    return jnp.pad(x, [(0, -x.shape[d] % multiple if d == 1 else 0) for d in range(x.ndim)])
