"""Messages -> token ids, by a checkpoint's own tokenizer and chat template.

Texts of messages are data: special tokens spelled out in them stay plain text, only those that the template itself writes
become ids. For texts that spell none, the ids are those that HF gives for the rendered string.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from zoomearth_jax.configs.io import read_json
from zoomearth_jax.errors import UserError

IMAGE_TOKEN = "<|image_pad|>"
_ROLES = ("system", "user", "assistant")
_TAKEN = set(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters)
_CUT = "\ufdd2"  # stands after the last message where the reply goes on with it
_RESERVED = re.compile("[\ufdd0-\ufdd2]")
_MARK = re.compile("\ufdd0([0-9]+)\ufdd1")  # stands for a text while the template runs; no characters of any language


def load_tokenizer(directory):
    """The tokenizer of a directory with the chat template that HF's processor takes: chat_template.json comes first, then
    what AutoTokenizer reads (chat_template.jinja, tokenizer_config.json).

    Raises:
        UserError: no tokenizer there, or a broken file.
    """
    if not (Path(directory) / "tokenizer_config.json").exists():
        raise UserError(f"{directory}: no tokenizer_config.json; copy the tokenizer's files of the checkpoint there")
    own = Path(directory) / "chat_template.json"
    template = read_json(own, {"chat_template": None}).get("chat_template", {})
    if not isinstance(template, str | None):
        raise UserError(f"{own}: chat_template must be a text, the template")
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except BaseException as error:  # of any kind; a panic of the Rust library is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"{directory}: no readable tokenizer ({reason})") from None
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


class Chat:
    """Turns messages into ids with a tokenizer."""

    def __init__(self, tokenizer):
        """Looks the special tokens up.

        Raises:
            UserError: the tokenizer has no chat template, or no special token <|image_pad|>.
        """
        self.tokenizer, self.name = tokenizer, tokenizer.name_or_path or "tokenizer"
        if not tokenizer.chat_template:
            raise UserError(
                f"{self.name}: no chat template; put the checkpoint's chat_template.jinja or chat_template.json there"
            )
        self.special = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        if IMAGE_TOKEN not in self.special:
            raise UserError(f"{self.name}: no special token {IMAGE_TOKEN}; it is not a Qwen2.5-VL tokenizer")
        longest_first = sorted(self.special, key=len, reverse=True)
        self._special = re.compile(f"({'|'.join(map(re.escape, longest_first))})")

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; special tokens spelled out in it stay plain text."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] if text else []

    def ids(
        self,
        messages: Sequence[dict],
        image_tokens: Sequence[int] = (),
        generate: bool = True,
        template: dict[str, Any] | None = None,
        go_on: bool = False,
    ) -> list[int]:
        """Ids of a conversation.

        Args:
            messages: in HF's form, {"role", "content"}; content is a text or a list of {"type": "image"} and
                {"type": "text", "text"}. A template sees marks in place of texts, so it can place them, not change them.
            image_tokens: merged visual tokens of each image, in order; each <|image_pad|> becomes that many.
            generate: whether the assistant's turn is opened at the end.
            template: further names that the template is given, with plain values.
            go_on: whether what follows goes on with the last message, so that the ids end where its content does.

        Raises:
            UserError: messages of another form, a template that fails on them, not as many images as image blocks, or names or
                values that a template can't be given.
        """
        marked, texts, blocks = _mark(messages)
        if blocks != len(image_tokens):
            raise UserError(f"messages: {blocks} image blocks, but {len(image_tokens)} images; give one for each block")
        rendered = self._cut(marked, template or {}) if go_on else self._render(marked, generate, template or {})
        return self._placed(self._tokenize(rendered, texts), image_tokens, "the chat template")

    def spelled_ids(self, prompt: str, place: str, text: str, image_tokens: Sequence[int]) -> list[int]:
        """Ids of a whole prompt that spells its special tokens itself.

        Args:
            place: what stands in the prompt where `text` goes, which stays plain text whatever it spells.
            image_tokens: see `ids`.

        Raises:
            UserError: the prompt hasn't as many places for images.
        """
        return self._placed(self._tokenize(prompt.replace(place, "\ufdd00\ufdd1"), [text]), image_tokens, "the prompt")

    def _placed(self, ids: list[int], image_tokens: Sequence[int], who: str) -> list[int]:
        """The ids with as many placeholders as each image has tokens."""
        image_id, images = self.special[IMAGE_TOKEN], len(image_tokens)
        if ids.count(image_id) != images:
            raise UserError(f"{self.name}: {who} wrote {ids.count(image_id)} places for {images} images")
        tokens = iter(image_tokens)
        return [i for one in ids for i in ([one] * next(tokens) if one == image_id else [one])]

    def _cut(self, messages: list[dict], template: dict[str, Any]) -> str:
        """The rendered messages up to the end of the last one's content."""
        *earlier, last = messages
        content = last["content"]
        text = content + _CUT if isinstance(content, str) else [*content, {"type": "text", "text": _CUT}]
        before, *after = self._render([*earlier, {**last, "content": text}], False, template).split(_CUT)
        if len(after) != 1:
            raise UserError(
                f"{self.name}: the chat template doesn't keep the last message, so that none can go on with it"
            )
        return before

    def _render(self, messages: list[dict], generate: bool, template: dict[str, Any]) -> str:
        if taken := sorted((_TAKEN | self.tokenizer.special_tokens_map.keys()) & template.keys()):
            raise UserError(
                f"chat_template_kwargs: {', '.join(taken)} can't be set; give names that the template reads"
            )
        for name, value in template.items():
            text = value if isinstance(value, str) else ""
            if not isinstance(value, str | int | float | None) or self._special.search(text) or _RESERVED.search(text):
                raise UserError(
                    f"chat_template_kwargs: {name} must be a number, true, false, or a text without special tokens"
                )
        try:
            return self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generate, **template
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise UserError(f"{self.name}: the chat template fails on the messages ({error})") from None

    def _tokenize(self, rendered: str, texts: list[str]) -> list[int]:
        ids: list[int] = []
        plain = ""  # template's and caller's text that stands between two special tokens
        for i, stretch in enumerate(_MARK.split(rendered)):  # template, mark, template, mark, ..., template
            if i % 2:
                plain += texts[int(stretch)]
                continue
            for part in self._special.split(stretch):
                if part in self.special:
                    ids += [*self.encode(plain), self.special[part]]
                    plain = ""
                else:
                    plain += part
        return ids + self.encode(plain)


def _mark(messages: Sequence[dict]) -> tuple[list[dict], list[str], int]:
    """Messages with marks for their texts (an empty one stays, so that templates see it is), the texts, and how many
    image blocks there are."""
    texts: list[str] = []

    def mark(text: str) -> str:
        texts.append(text)
        return f"\ufdd0{len(texts) - 1}\ufdd1" if text else ""

    def block(part) -> dict:
        match part:
            case {"type": "image"}:
                return {"type": "image"}
            case {"type": "text", "text": str(text)}:
                return {"type": "text", "text": mark(text)}
        raise UserError(f"messages: a block is an image or a text, not {str(part)[:60]!r}")

    marked: list[dict] = []
    for message in messages:
        match message:
            case {"role": str(role), "content": str(text)} if role in _ROLES:
                marked.append({"role": role, "content": mark(text)})
            case {"role": str(role), "content": list(parts)} if role in _ROLES:
                marked.append({"role": role, "content": [block(part) for part in parts]})
            case _:
                raise UserError(
                    f"messages: a message has a role of {', '.join(_ROLES)} and a content, not {message!r:.60}"
                )
    images = sum(part["type"] == "image" for m in marked if isinstance(m["content"], list) for part in m["content"])
    return marked, texts, images
