"""The family Qwen2.5-VL: configuration, vision, decoder, model, weights."""
