"""The language model: embeddings, grouped-query attention with multimodal rotary positions, logits."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
from flax import nnx

from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.models.attention import KVCache, decoder_attention
from zoomearth_jax.models.layers import Linear, Places, SwiGLU, move_rows, rms_norm, scan_layers, stack
from zoomearth_jax.models.qwen2_5_vl.config import TextConfig
from zoomearth_jax.models.rope import apply_rope, text_angles
from zoomearth_jax.models.sharding import constrain, constrain_sampler, rows_of_columns


class DecoderLayer(nnx.Module):
    """Pre-norm attention and SwiGLU."""

    def __init__(self, config: TextConfig, *, compute: ComputeConfig, rngs: nnx.Rngs):
        self.head_dim, self.attention = config.head_dim, compute.attention
        settings: dict[str, Any] = {"compute": compute, "rngs": rngs}
        kv_width = config.num_kv_heads * config.head_dim
        self.input_norm = rms_norm(config.width, config.norm_eps, **settings)
        self.post_attention_norm = rms_norm(config.width, config.norm_eps, **settings)
        self.q_proj = Linear(config.width, config.width, ("embed", "heads"), **settings)
        self.k_proj = Linear(config.width, kv_width, ("embed", "kv_heads"), **settings)
        self.v_proj = Linear(config.width, kv_width, ("embed", "kv_heads"), **settings)
        self.o_proj = Linear(config.width, config.width, ("attended", "mixed"), use_bias=False, **settings)
        self.mlp = SwiGLU(config.width, config.mlp_dim, use_bias=False, **settings)

    def __call__(self, x_BTD, angles_BTH, samples_BT, past: KVCache | None):
        """Returns the layer's output and its own rotated keys and values, [B, K, T, H] each."""
        return self._run(
            x_BTD, angles_BTH, lambda q, k, v: decoder_attention(q, k, v, samples_BT, past, self.attention)
        )

    def grouped(self, x_ASD, angles_ASH, samples_AU, samples_BT, places: Places | None = None):
        """The output of rows [prompt | reply | reply ...]: A prompts, each with its B / A replies of T tokens.

        Args:
            places: given where x and angles have only the slots that exist.
        """
        (prompts, split), (replies, length) = samples_AU.shape, samples_BT.shape

        def attend_kept(places: Places, q, k, v):
            kept, place = places.kept_AR, places.place_AS
            q, k, v = (move_rows(x, place, kept) for x in (q, k.swapaxes(1, 2), v.swapaxes(1, 2)))
            return move_rows(attend(q, k.swapaxes(1, 2), v.swapaxes(1, 2)), kept, place)

        def attend(q_ASNH, k_AKSH, v_AKSH):
            (k_AKUH, k_replies), (v_AKUH, v_replies) = (jnp.split(x, [split], axis=2) for x in (k_AKSH, v_AKSH))
            q_AUNH, q_replies = jnp.split(q_ASNH, [split], axis=1)
            prompt = decoder_attention(q_AUNH, k_AKUH, v_AKUH, samples_AU, None, self.attention)
            k_BKUH, v_BKUH, samples_BU = (
                jnp.repeat(x, replies // prompts, axis=0) for x in (k_AKUH, v_AKUH, samples_AU)
            )
            past = KVCache(k_BKUH, v_BKUH, samples_BU)
            k_BKTH, v_BKTH = (
                x.reshape(*x.shape[:2], -1, length, x.shape[3]).swapaxes(1, 2).reshape(replies, -1, length, x.shape[3])
                for x in (k_replies, v_replies)
            )
            q_BTNH = q_replies.reshape(replies, length, *q_replies.shape[2:])
            reply = decoder_attention(q_BTNH, k_BKTH, v_BKTH, samples_BT, past, self.attention)
            return jnp.concatenate([prompt, reply.reshape(q_replies.shape)], axis=1)

        return self._run(x_ASD, angles_ASH, attend if places is None else functools.partial(attend_kept, places))[0]

    def _run(self, x_BTD, angles_BTH, attend):
        y_BTD = self.input_norm(x_BTD)
        columns = rows_of_columns(*(proj(y_BTD) for proj in (self.q_proj, self.k_proj, self.v_proj)))
        q, k, v = (x.reshape(*y_BTD.shape[:2], -1, self.head_dim) for x in columns)
        q, k = apply_rope(q, angles_BTH), apply_rope(k, angles_BTH)
        k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
        out = attend(q, k, v)
        # the sampler's devices attend to their own rows; each then has all rows of its group, and gives some columns
        out = constrain_sampler(out.reshape(x_BTD.shape), "batch", None, None)
        x_BTD = constrain_sampler(x_BTD + self.o_proj(out), "batch", None, None)
        return x_BTD + self.mlp(self.post_attention_norm(x_BTD)), (k, v)


class Decoder(nnx.Module):
    """A segment of each row, given the cache of the segments before it -> hidden states and the segment's own cache."""

    def __init__(self, config: TextConfig, *, compute: ComputeConfig, rngs: nnx.Rngs):
        self.config, self.remat = config, compute.remat
        settings: dict[str, Any] = {"compute": compute, "rngs": rngs}
        self.embed = nnx.Embed(
            config.vocab_size,
            config.width,
            embedding_metadata={"axes": ("vocab", "embed")},
            rngs=rngs,
            **compute.dtypes,
        )
        self.layers = stack(lambda r: DecoderLayer(config, compute=compute, rngs=r), config.num_layers, rngs)
        self.norm = rms_norm(config.width, config.norm_eps, **settings)
        if not config.tie_embeddings:
            self.lm_head = Linear(config.width, config.vocab_size, ("embed", "vocab"), use_bias=False, **settings)

    def __call__(self, x_BTD, positions_3BT, samples_BT, past: KVCache | None = None):
        """Runs the layers over a segment.

        Args:
            x_BTD: embeddings, image features merged in.
            positions_3BT: multimodal positions.
            samples_BT: sample numbers (see `decoder_attention`); outputs at padding are undefined but finite.
            past: cache of all earlier slots, k and v [L, B, K, S, H]; of its prefix [L, A, K, U, H].

        Returns:
            normed hidden states [B, T, D], and the segment's KVCache with k and v [L, B, K, T, H].
        """
        config = self.config
        angles = text_angles(positions_3BT, config.head_dim, config.rope_theta, config.mrope_section)

        def step(layer, x, arrays):
            return layer(x, angles, samples_BT, None if past is None else past.with_arrays(arrays))

        x_BTD, (k, v) = scan_layers(self.layers, step, x_BTD, None if past is None else past.arrays(), self.remat)
        return self.norm(x_BTD), KVCache(k, v, samples_BT)

    def grouped(self, x_AUD, positions_3AU, samples_AU, x_BTD, positions_3BT, samples_BT, places: Places | None = None):
        """Prompts and the replies that follow each of them, in one pass over the layers: weights are gathered once, and
        gradients reduced once, for both.

        Args:
            x_AUD, positions_3AU, samples_AU: A prompts.
            x_BTD, positions_3BT, samples_BT: their replies; i G … (i + 1) G - 1 follow prompt i.
            places: the slots of rows [prompt | reply | reply ...] that exist, to compute no others.

        Returns:
            normed hidden states [A, U, D] and [B, T, D]; 0 at slots that `places` leaves out.
        """
        config, (prompts, split, width) = self.config, x_AUD.shape

        def rows(a_AU, a_BT):
            return jnp.concatenate([a_AU, a_BT.reshape(prompts, -1, *a_BT.shape[2:])], axis=1)

        settings = config.head_dim, config.rope_theta, config.mrope_section
        x_ASD = rows(x_AUD, x_BTD)
        angles_ASH = rows(text_angles(positions_3AU, *settings), text_angles(positions_3BT, *settings))
        if places is not None:
            x_ASD, angles_ASH = (move_rows(x, places.kept_AR, places.place_AS) for x in (x_ASD, angles_ASH))

        def step(layer, x_ASD, _):
            return layer.grouped(x_ASD, angles_ASH, samples_AU, samples_BT, places), None

        x_ASD, _ = scan_layers(self.layers, step, x_ASD, None, self.remat)
        x_ASD = self.norm(x_ASD)
        if places is not None:
            x_ASD = move_rows(x_ASD, places.place_AS, places.kept_AR)
        return x_ASD[:, :split], x_ASD[:, split:].reshape(*x_BTD.shape[:2], width)

    def lookup(self, ids_BT):
        """Embeddings [B, T, D] of token ids.

        Each device looks its part of the width up for all rows of its fsdp group, and these swap parts for rows: far fewer
        bytes than the table and its gradient have. Single tokens (decoding) take the table that the sampler gathered.
        """
        table_VD = self.embed.embedding[...]
        if ids_BT.shape[1] == 1:
            table_VD = constrain(table_VD, "vocab", None)
            return constrain(table_VD[ids_BT].astype(self.embed.dtype), "batch", None, None)
        x_BTD = table_VD[constrain(ids_BT, "group", None)].astype(self.embed.dtype)
        return constrain(constrain(x_BTD, "group", None, "embed"), "batch", None, None)

    def logits(self, hidden):
        """float32 logits [..., V] of hidden states [..., D]."""
        tied = self.config.tie_embeddings
        kernel_DV = self.embed.embedding[...].T if tied else self.lm_head.kernel[...]
        logits = jnp.matmul(hidden, kernel_DV.astype(hidden.dtype), preferred_element_type=jnp.float32)
        return logits if tied or self.lm_head.lora is None else logits + self.lm_head.lora(hidden).astype(logits.dtype)
