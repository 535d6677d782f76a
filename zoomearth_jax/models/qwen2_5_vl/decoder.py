"""The language model: embeddings, grouped-query attention with multimodal rotary positions, logits."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx

from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.models.attention import KVCache, decoder_attention
from zoomearth_jax.models.layers import Linear, Places, SwiGLU, move_rows, rms_norm, scan_layers, stack
from zoomearth_jax.models.qwen2_5_vl.config import TextConfig
from zoomearth_jax.models.rope import apply_rope, text_angles
from zoomearth_jax.models.sharding import constrain


class DecoderLayer(nnx.Module):
    """Pre-norm attention and SwiGLU."""

    def __init__(self, config: TextConfig, *, compute: ComputeConfig, rngs: nnx.Rngs):
        self.head_dim, self.attention = config.head_dim, compute.attention
        settings = {"compute": compute, "rngs": rngs}
        kv_width = config.num_kv_heads * config.head_dim
        self.input_norm = rms_norm(config.width, config.norm_eps, **settings)
        self.post_attention_norm = rms_norm(config.width, config.norm_eps, **settings)
        self.q_proj = Linear(config.width, config.width, ("embed", "heads"), **settings)
        self.k_proj = Linear(config.width, kv_width, ("embed", "kv_heads"), **settings)
        self.v_proj = Linear(config.width, kv_width, ("embed", "kv_heads"), **settings)
        self.o_proj = Linear(config.width, config.width, ("heads", "embed"), use_bias=False, **settings)
        self.mlp = SwiGLU(config.width, config.mlp_dim, use_bias=False, **settings)

    def __call__(self, x_BTD, angles_BTH, valid_BT, past: KVCache | None):
        """Returns the layer's output and its own rotated keys and values, [B, K, T, H] each."""
        return self._run(x_BTD, angles_BTH, lambda q, k, v: decoder_attention(q, k, v, valid_BT, past, self.attention))

    def grouped(self, x_NSD, angles_NSH, valid_NP, valid_BT, places: Places | None = None):
        """The output of rows [prompt | reply | reply ...]: N prompts, each with its B / N replies of T tokens.

        Args:
            places: where x and angles have the slots that exist alone.
        """
        (prompts, split), (replies, length) = valid_NP.shape, valid_BT.shape

        def attend_kept(q, k, v):
            slots = places.place_NS, places.kept_NR
            q, k, v = (move_rows(x, *slots) for x in (q, k.swapaxes(1, 2), v.swapaxes(1, 2)))
            return move_rows(attend(q, k.swapaxes(1, 2), v.swapaxes(1, 2)), *slots[::-1])

        def attend(q_NSQH, k_NKSH, v_NKSH):
            (k_NKPH, k_NKRH), (v_NKPH, v_NKRH) = (jnp.split(x, [split], axis=2) for x in (k_NKSH, v_NKSH))
            q_NPQH, q_NRQH = jnp.split(q_NSQH, [split], axis=1)
            prompt = decoder_attention(q_NPQH, k_NKPH, v_NKPH, valid_NP, None, self.attention)
            past = KVCache(*(jnp.repeat(x, replies // prompts, axis=0) for x in (k_NKPH, v_NKPH, valid_NP)))
            k_BKTH, v_BKTH = (
                x.reshape(*x.shape[:2], -1, length, x.shape[3]).swapaxes(1, 2).reshape(replies, -1, length, x.shape[3])
                for x in (k_NKRH, v_NKRH)
            )
            q_BTQH = q_NRQH.reshape(replies, length, *q_NRQH.shape[2:])
            reply = decoder_attention(q_BTQH, k_BKTH, v_BKTH, valid_BT, past, self.attention)
            return jnp.concatenate([prompt, reply.reshape(q_NRQH.shape)], axis=1)

        return self._run(x_NSD, angles_NSH, attend if places is None else attend_kept)[0]

    def _run(self, x_BTD, angles_BTH, attend):
        y_BTD = self.input_norm(x_BTD)
        q, k, v = (
            proj(y_BTD).reshape(*y_BTD.shape[:2], -1, self.head_dim) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = apply_rope(q, angles_BTH), apply_rope(k, angles_BTH)
        k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
        out = attend(q, k, v)
        x_BTD = x_BTD + self.o_proj(out.reshape(x_BTD.shape))
        return x_BTD + self.mlp(self.post_attention_norm(x_BTD)), (k, v)


class Decoder(nnx.Module):
    """A segment of each row, given the cache of the segments before it -> hidden states and the segment's own cache."""

    def __init__(self, config: TextConfig, *, compute: ComputeConfig, rngs: nnx.Rngs):
        self.config, self.remat = config, compute.remat
        settings = {"compute": compute, "rngs": rngs}
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

    def __call__(self, x_BTD, positions_3BT, valid_BT, past: KVCache | None = None):
        """Runs the layers over a segment.

        Args:
            x_BTD: embeddings, image features merged in.
            positions_3BT: multimodal positions.
            valid_BT: bool, tokens that may be attended to, or the samples of packed rows (see `decoder_attention`); outputs
                at other tokens are undefined but finite.
            past: cache of all earlier slots, k and v [L, B, K, S, H].

        Returns:
            normed hidden states [B, T, D], and the segment's KVCache with k and v [L, B, K, T, H].
        """
        config = self.config
        angles = text_angles(positions_3BT, config.head_dim, config.rope_theta, config.mrope_section)

        def step(layer, x, past_kv):
            layer_past = None if past is None else KVCache(*past_kv, past.valid_BS)
            return layer(x, angles, valid_BT, layer_past)

        x_BTD, (k, v) = scan_layers(self.layers, step, x_BTD, None if past is None else (past.k, past.v), self.remat)
        return self.norm(x_BTD), KVCache(k, v, valid_BT)

    def grouped(self, x_NPD, positions_3NP, valid_NP, x_BTD, positions_3BT, valid_BT, places: Places | None = None):
        """Prompts and the replies that follow each of them, in one pass over the layers: weights are gathered once, and
        gradients reduced once, for both.

        Args:
            x_NPD, positions_3NP, valid_NP: N prompts.
            x_BTD, positions_3BT, valid_BT: their replies; i G … (i + 1) G - 1 follow prompt i.
            places: of the slots of rows [prompt | reply | reply ...] that exist, to compute no others.

        Returns:
            normed hidden states [N, P, D] and [B, T, D]; 0 at slots that `places` leaves out.
        """
        config, (prompts, split, width) = self.config, x_NPD.shape

        def rows(a_NP, a_BT):
            return jnp.concatenate([a_NP, a_BT.reshape(prompts, -1, *a_BT.shape[2:])], axis=1)

        settings = config.head_dim, config.rope_theta, config.mrope_section
        x_NSD = rows(x_NPD, x_BTD)
        angles_NSH = rows(text_angles(positions_3NP, *settings), text_angles(positions_3BT, *settings))
        if places is not None:
            x_NSD, angles_NSH = (move_rows(x, *places) for x in (x_NSD, angles_NSH))

        def step(layer, x_NSD, _):
            return layer.grouped(x_NSD, angles_NSH, valid_NP, valid_BT, places), None

        x_NSD, _ = scan_layers(self.layers, step, x_NSD, None, self.remat)
        x_NSD = self.norm(x_NSD)
        if places is not None:
            x_NSD = move_rows(x_NSD, *places[::-1])
        return x_NSD[:, :split], x_NSD[:, split:].reshape(*x_BTD.shape[:2], width)

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
