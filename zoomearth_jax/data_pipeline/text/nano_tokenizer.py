"""The nano model's tokenizer: Qwen's special tokens, integers and the protocol's pieces as single tokens.

A Unigram model of HF `tokenizers` with single characters and bytes to fall back on, so every text round-trips.
"""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerFast

from zoomearth_jax.data_pipeline.questions.scenes import COLORS, ORIENTATIONS, SEASONS

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_PIECES = ("<think>", "</think>", "<answer>", "</answer>", '[{"bbox_2d": [', '], "label": "', '"}]', ", ")
_ROLES = ("user\n", "assistant\n", "system\n")
_WORDS = (
    "Which way do the stripes of site sites run How many are there season is it find looks like What Where color colour "
    "shape this that in on at a an and to image scene direction area building buildings top bottom left right centre yes no"
)
_NESTED_PIECES, _NESTED_WORDS = ('", "source": "picture"}]',), ["badge"]
_MAX_INTEGER = 112
_CHAT_TEMPLATE = (  # Qwen's turns, without its default system message
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for block in message.content %}"
    "{% if block.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ block.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_nano_tokenizer(nested: bool = False) -> PreTrainedTokenizerFast:
    """The tokenizer, built from the lists above; the same ids every time.

    Args:
        nested: with pieces for looks inside the last picture too.
    """
    words = list(dict.fromkeys([*_WORDS.split(), *COLORS, *SEASONS, *ORIENTATIONS]))
    integers = [str(i) for i in range(10, _MAX_INTEGER + 1)]
    words += _NESTED_WORDS if nested else []
    pieces = (*_PIECES, *_NESTED_PIECES) if nested else _PIECES
    whole = [*pieces, *_ROLES, *integers, *words, *(" " + word for word in words)]
    characters = [*map(chr, range(32, 127)), "\n"]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    scored = [(piece, -1000.0) for piece in SPECIAL]  # found as special tokens, never as pieces of plain text
    scored += [(piece, -1.0) for piece in whole]
    scored += [(piece, -10.0) for piece in characters] + [(piece, -20.0) for piece in fallback]
    tokenizer = Tokenizer(Unigram(scored, unk_id=len(SPECIAL) + len(whole) + len(characters), byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=_CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
