"""A small tokenizer in the form of published Qwen2.5-VL checkpoints. Needs no torch and no network."""

import base64
import json
from importlib.util import find_spec
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer

SPECIAL = (  # in the published order: with ids_from=151643 each has its published id
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
ADDED = ("<tool_call>", "</tool_call>")  # ids of their own, but not special
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SENTENCES = (
    "system\nYou are a helpful assistant.\nuser\nWhat is in this image?\nassistant\nThere are two buildings\n\nand a road.",
    "Which way do the stripes of the red site run? Think first, inside <think> and </think>; answer inside <answer>.",
    'If a closer look is needed, name one box as [{"bbox_2d": [12, 40, 180, 96], "label": "the red site"}].',
)
# renders as the published one does, in our words
CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{% if loop.first and m.role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def qwen_ranks() -> Path | None:
    """The file of Qwen's real vocabulary, 151,643 pieces in order, inside the package dashscope; None without it."""
    spec = find_spec("dashscope")
    return spec and Path(spec.submodule_search_locations[0]) / "resources" / "qwen.tiktoken"


def _qwen_bpe(ranks: Path) -> dict:
    """Vocabulary and merges of a tiktoken file, in the letters of byte-level BPE."""
    letters = _byte_letters()
    lines = (line.split() for line in ranks.read_bytes().splitlines() if line)
    rank_of = {base64.b64decode(piece): int(rank) for piece, rank in lines}

    def word(piece: bytes) -> str:
        return "".join(letters[byte] for byte in piece)

    merges = []
    for piece in rank_of:  # in the order of ranks, which is that of merges
        cuts = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        pairs = [pair for pair in cuts if pair[0] in rank_of and pair[1] in rank_of]
        pairs.sort(key=lambda pair: (rank_of[pair[0]], rank_of[pair[1]]))
        merges += [(word(a), word(b)) for a, b in pairs]
    return {"vocab": {word(piece): rank for piece, rank in rank_of.items()}, "merges": merges}


def _byte_letters() -> list[str]:
    """The letter of each byte in byte-level BPE: its own where it can be printed, else the next of those from 256 on."""
    printed = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printed else next(others)) for byte in range(256)]


def write_tokenizer(directory, ids_from: int | None = None, ranks: Path | None = None):
    """Writes tokenizer, chat template, preprocessor and generation settings as published; returns the loaded tokenizer.

    Args:
        directory: made if it isn't there.
        ids_from: id of <|endoftext|>, the first of SPECIAL; ADDED follow. Just after the vocabulary by default.
        ranks: a real vocabulary (see `qwen_ranks`) in place of a small one.

    Raises:
        ValueError: the vocabulary doesn't fit below ids_from.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = _byte_level_bpe(ids_from, ranks)
    tokenizer.save(str(directory / "tokenizer.json"))
    ids = {token: tokenizer.token_to_id(token) for token in (*SPECIAL, *ADDED)}
    image_settings = {
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
    }
    generation = {
        "bos_token_id": ids["<|endoftext|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
        "do_sample": True,
        "repetition_penalty": 1.05,
        "temperature": 1e-6,
    }
    for name, content in {
        "tokenizer_config.json": _tokenizer_settings(ids),
        "chat_template.json": {"chat_template": CHAT_TEMPLATE},
        "preprocessor_config.json": image_settings,
        "generation_config.json": generation,
    }.items():
        (directory / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
    return AutoTokenizer.from_pretrained(directory, local_files_only=True)


def _byte_level_bpe(ids_from: int | None, ranks: Path | None) -> Tokenizer:
    def empty(**model) -> Tokenizer:
        tokenizer = Tokenizer(BPE(**model))
        tokenizer.normalizer = normalizers.NFC()
        words = pre_tokenizers.Split(Regex(_WORDS), behavior="isolated")
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, bytes_])
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
        return tokenizer

    if ranks is None:
        trained = empty()
        trainer = BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
        trained.train_from_iterator(_SENTENCES, trainer)
        model = json.loads(trained.to_str())["model"]
    else:
        model = _qwen_bpe(ranks)
    vocabulary = model["vocab"]
    ids_from = len(vocabulary) if ids_from is None else ids_from
    if ids_from < len(vocabulary):
        raise ValueError(f"ids_from={ids_from}: the vocabulary has {len(vocabulary)} pieces")
    filler = {f"filler{i}": i for i in range(len(vocabulary), ids_from)}  # no merge makes them
    tokenizer = empty(vocab=vocabulary | filler, merges=[tuple(pair) for pair in model["merges"]])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ADDED])
    return tokenizer


def _tokenizer_settings(ids: dict[str, int]) -> dict:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(i): {"content": t, **flags, "special": t in SPECIAL} for t, i in ids.items()},
        "additional_special_tokens": list(SPECIAL[1:]),
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
