"""Tiny random Qwen2.5-VL models of HF transformers. Needs torch."""

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tests.tiny_inputs import END, IMAGE, START, VIDEO, VOCAB


def tiny_model(*, heads=4, kv_heads=2, tied=True, seed=0):
    """A model whose norms, biases and embeddings are all far from their initial values."""
    torch.manual_seed(seed)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": VOCAB,
            "hidden_size": 8 * heads,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
            "bos_token_id": 0,
            "eos_token_id": 1,
        },
        vision_config={
            "depth": 3,
            "hidden_size": 16,
            "num_heads": 2,
            "intermediate_size": 24,
            "out_hidden_size": 8 * heads,
            "fullatt_block_indexes": [1],
            "window_size": 56,
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
        tie_word_embeddings=tied,
    )
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.02 if "patch_embed" in name else 0.25
            parameter.copy_(torch.randn_like(parameter) * scale + ("norm" in name or "ln_q" in name))
    return model


@torch.no_grad()
def hf_outputs(model, ids, mask, pixels, grids):
    """Logits, visual tokens and mRoPE positions, as NumPy arrays."""
    ids_t, mask_t, pixels_t, grids_t = map(torch.tensor, (ids, mask, pixels, grids))
    types = (ids_t == IMAGE).int()
    logits = model(
        input_ids=ids_t, attention_mask=mask_t, pixel_values=pixels_t, image_grid_thw=grids_t, mm_token_type_ids=types
    ).logits
    positions, _ = model.model.get_rope_index(ids_t, types, grids_t, attention_mask=mask_t)
    features = model.model.visual(pixels_t, grid_thw=grids_t).pooler_output
    return logits.numpy(), features.numpy(), positions.numpy()


@torch.no_grad()
def hf_greedy(model, ids, mask, pixels, grids, count: int):
    """Greedy continuation by full recomputation at every step: no generation code is trusted."""
    ids_t, mask_t = torch.tensor(ids), torch.tensor(mask)
    for _ in range(count):
        logits = model(
            input_ids=ids_t,
            attention_mask=mask_t,
            pixel_values=torch.tensor(pixels),
            image_grid_thw=torch.tensor(grids),
            mm_token_type_ids=(ids_t == IMAGE).int(),
        ).logits[:, -1]
        logits[:, [IMAGE, VIDEO]] = -torch.inf  # a sampled placeholder would have no image
        ids_t = torch.cat([ids_t, logits.argmax(-1, keepdim=True)], 1)
        mask_t = torch.cat([mask_t, torch.ones_like(mask_t[:, :1])], 1)
    return ids_t[:, -count:].numpy()
