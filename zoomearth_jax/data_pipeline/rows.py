"""Rows of the fixed layout `[prompt | stage 1 | crop | stage 2]`, as NumPy arrays.

Each slot is right-padded. Two masks go with the ids of the reply (all slots after the prompt):
valid: tokens that later tokens see. Stop tokens are not among them: the turn goes on after a crop, as HF's chat template
renders it, and nothing follows the last one.
target: tokens that the policy wrote, stop tokens included; the loss is on these alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from zoomearth_jax.configs.episode import EpisodeConfig, layout_flags
from zoomearth_jax.data_pipeline.boxes import Box, Frame, crop_window, view_size
from zoomearth_jax.data_pipeline.chat import Chat
from zoomearth_jax.data_pipeline.images import ImageSource, global_view, view_of
from zoomearth_jax.data_pipeline.protocol import parse_box, render_answer, render_look
from zoomearth_jax.data_pipeline.question import Question
from zoomearth_jax.data_pipeline.records import one_line
from zoomearth_jax.errors import UserError


class Views(NamedTuple):
    """Pictures for the vision encoder: uint8 pixels [I, side, side, 3] with each picture top left, merged grids [I, 2]."""

    pixels: np.ndarray
    grids: np.ndarray


class Prompts(NamedTuple):
    """Prompt slots of a batch: ids and valid [B, prompt_len], and the overviews."""

    ids: np.ndarray
    valid: np.ndarray
    views: Views


class Replies(NamedTuple):
    """Slots after the prompt: ids, valid and target [B, reply_len], and the crops (grid 0 x 0 where there is none)."""

    ids: np.ndarray
    valid: np.ndarray
    target: np.ndarray
    crops: Views


class RowBuilder:
    """Turns questions into rows with a tokenizer."""

    def __init__(
        self, tokenizer, episode: EpisodeConfig, generation: dict | None = None, processors: dict | None = None
    ):
        """Looks the special tokens up; UserError if the tokenizer lacks one, or a chat template that fits.

        Args:
            generation: what `generation_config.json` holds, eos_token_id as a list. These end tokens stop a stage beside
                <|im_end|> and <|endoftext|>; the rest is kept to be saved again.
            processors: settings of HF's processor that were beside the model (`side_files.py`); kept to be saved again.
        """
        generation = generation or {}
        self.tokenizer, self.episode, self.processors = tokenizer, episode, processors or {}
        names = (
            "<|im_start|>",
            "<|im_end|>",
            "<|endoftext|>",
            "<|vision_start|>",
            "<|vision_end|>",
            "<|image_pad|>",
            "<|video_pad|>",
        )
        vocabulary = tokenizer.get_vocab()
        missing = [name for name in names if name not in vocabulary]
        if missing:
            raise UserError(f"tokenizer: no {', '.join(missing)}; it is not a Qwen2.5-VL tokenizer")
        start, self.stop_id, self.pad_id, self.look_id, self.seen_id, self.image_id, video = (
            vocabulary[name] for name in names
        )
        self.stop_ids = tuple(dict.fromkeys((self.stop_id, self.pad_id, *generation.get("eos_token_id", ()))))
        self.generation = {**generation, "eos_token_id": list(self.stop_ids), "pad_token_id": self.pad_id}
        self.banned_ids = (start, self.look_id, self.seen_id, self.image_id, video)
        self.chat = Chat(tokenizer)
        prompt = self.prompt_ids("", 1)
        image = prompt.index(self.image_id)
        if prompt[image - 1 : image + 2] != [self.look_id, self.image_id, self.seen_id]:
            raise UserError(f"{self.chat.name}: the chat template doesn't put an image between vision marks")
        self.head_ids, self.tail_ids = prompt[: image - 1], prompt[image + 2 :]

    def prompt_ids(self, text: str, image_tokens: int) -> list[int]:
        """Ids of a prompt by the chat template: the system message if there is one, the overview and the text, and the
        assistant's turn opened. `head_ids` and `tail_ids` are those around image and text."""
        system, blocks = self.episode.system, [{"type": "image"}, {"type": "text", "text": text}]
        messages = [{"role": "system", "content": system}] if system else []
        return self.chat.ids([*messages, {"role": "user", "content": blocks}], [image_tokens])

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; special tokens spelled out in it stay plain text."""
        return self.chat.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of sampled ids, without stop and pad tokens."""
        return self.tokenizer.decode([i for i in ids if i not in self.stop_ids], skip_special_tokens=False)

    def view_frame(self, view: np.ndarray) -> Frame:
        """The frame that the model's boxes are in: the pixels of its overview."""
        return Frame(view.shape[1], view.shape[0])

    def overview(self, question: Question) -> np.ndarray:
        """The question's image as the model first sees it, uint8 [h, w, 3]."""
        return global_view(question.image, self.episode.view_px, self.episode.merged_px)

    def window(self, box: Box, image_frame: Frame) -> Box:
        """The window of the original that a box in any frame asks for: what the policy sees and the rewards score."""
        return crop_window(box.to(image_frame), self.episode.min_window_px, self.episode.crop)

    def crop(self, image: ImageSource, window: Box) -> np.ndarray:
        """The window as the model sees it, uint8 [h, w, 3]."""
        return view_of(image, window, self.episode.view_px, self.episode.merged_px)

    def views(self, pictures: Sequence[np.ndarray | None]) -> Views:
        """Pads pictures to the view canvas; None leaves an empty one."""
        side, unit = self.episode.view_side, self.episode.merged_px
        pixels = np.zeros((len(pictures), side, side, 3), np.uint8)
        grids = np.zeros((len(pictures), 2), np.int32)
        for i, picture in enumerate(pictures):
            if picture is not None:
                pixels[i, : picture.shape[0], : picture.shape[1]] = picture
                grids[i] = picture.shape[0] // unit, picture.shape[1] // unit
        return Views(pixels, grids)

    def prompts(self, questions: Sequence[Question], overviews: Sequence[np.ndarray] | None = None) -> Prompts:
        """Prompt slots of questions.

        Raises:
            UserError: a question that doesn't fit the slot.
        """
        overviews = overviews or [self.overview(q) for q in questions]
        views = self.views(overviews)
        ids = np.full((len(questions), self.episode.prompt_len), self.pad_id, np.int32)
        valid = np.zeros(ids.shape, bool)
        for row, question in enumerate(questions):
            prompt = self.prompt_ids(self._asked(question), int(views.grids[row].prod()))
            if len(prompt) > ids.shape[1]:
                raise UserError(self._too_long(question, prompt_len=len(prompt)))
            ids[row, : len(prompt)] = prompt
            valid[row, : len(prompt)] = True
        return Prompts(ids, valid, views)

    def pictures(self, views: Views) -> list[np.ndarray]:
        """The pictures that `views` padded, without the padding."""
        sides = views.grids * self.episode.merged_px
        return [pixels[:height, :width] for pixels, (height, width) in zip(views.pixels, sides, strict=True)]

    def supervised(self, questions: Sequence[Question]) -> tuple[Prompts, Replies]:
        """Whole rows for fine-tuning, both views read; errors as of `prompts` and `reference_replies`."""
        overviews = [self.overview(q) for q in questions]
        return self.prompts(questions, overviews), self.reference_replies(questions, overviews)

    def crop_slots(self, grids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids and valid [B, crop_len] of crops with merged grids [B, 2]; empty where the grid is 0 x 0."""
        tokens = grids.prod(-1)[:, None]
        slot = np.arange(self.episode.crop_len)[None]
        ids = np.where(slot == 0, self.look_id, np.where(slot <= tokens, self.image_id, self.seen_id))
        valid = (slot < tokens + 2) & (tokens > 0)
        return np.where(valid, ids, self.pad_id).astype(np.int32), valid

    def replies(self, stage1: Sequence[Sequence[int]], stage2: Sequence[Sequence[int]], crops: Views) -> Replies:
        """Reply slots from the ids of both stages, each ending with its stop token if there was room for it."""
        e = self.episode
        batch = len(stage1)
        ids = np.full((batch, e.reply_len), self.pad_id, np.int32)
        valid, target = np.zeros(ids.shape, bool), np.zeros(ids.shape, bool)
        crop = slice(e.stage1_len, e.stage1_len + e.crop_len)
        ids[:, crop], valid[:, crop] = self.crop_slots(crops.grids)
        for begin, stage in ((0, stage1), (crop.stop, stage2)):
            for row, written in enumerate(stage):
                end = begin + len(written)
                ids[row, begin:end] = written
                target[row, begin:end] = True
                valid[row, begin:end] = ~np.isin(written, self.stop_ids)
        return Replies(ids, valid, target, crops)

    def reference_replies(self, questions: Sequence[Question], overviews: Sequence[np.ndarray]) -> Replies:
        """What fine-tuning imitates: the protocol with the reference box, and the crop which that very text asks for.

        Raises:
            UserError: a reference that doesn't fit its slot.
        """
        stage1, stage2, crops = [], [], []
        for question, overview in zip(questions, overviews, strict=True):
            view = self.view_frame(overview)
            look, answer = reference_texts(question, view)
            stage1.append(self._written(question, look, "stage1_len"))
            stage2.append(self._written(question, answer, "stage2_len") if answer else [])
            box = parse_box(look, view).box if answer else None
            crops.append(box and self.crop(question.image, self.window(box, question.image.frame)))
        return self.replies(stage1, stage2, self.views(crops))

    def _written(self, question: Question, text: str, slot: str) -> list[int]:
        ids = [*self.encode(text), self.stop_id]
        if len(ids) > getattr(self.episode, slot):
            raise UserError(self._too_long(question, **{slot: len(ids)}))
        return ids

    def _asked(self, question: Question) -> str:
        return f"{question.asked} {self.episode.instruction}".strip()

    def _too_long(self, question: Question, **lengths: int) -> str:
        """What is said of a question that doesn't fit slots, given by name with the tokens that it takes."""
        took = ", ".join(f"{n} tokens for the {getattr(self.episode, slot)} of {slot}" for slot, n in lengths.items())
        asked = one_line(question.text[:60])
        return f"question {asked!r} takes {took}; shorten it, or {layout_flags(**lengths)} holds it"

    def check_prompts(self, questions: Sequence[Question]) -> None:
        """Checks that all prompts fit, from the texts and the images' sizes alone.

        Raises:
            UserError: some don't: how many, the longest, and the settings that hold all.
        """
        self._check(questions, lambda question, view: {})

    def check_supervised(self, questions: Sequence[Question]) -> None:
        """As `check_prompts`, of prompts and references."""

        def replies(question: Question, view: Frame) -> dict[str, str]:
            return dict(zip(("stage1_len", "stage2_len"), reference_texts(question, view), strict=True))

        self._check(questions, replies)

    def _check(self, questions: Sequence[Question], replies: Callable[[Question, Frame], dict[str, str]]) -> None:
        longest, worst, count = {}, None, 0
        for question in questions:
            frame = question.image.frame
            view = view_size(frame.width, frame.height, self.episode.view_px, self.episode.merged_px)
            texts = {"prompt_len": self._asked(question)} | replies(question, view)
            over = {slot: n for slot, text in texts.items() if (n := self._excess(slot, text, view))}
            count += bool(over)
            for slot, tokens in over.items():
                if tokens > longest.get(slot, 0):
                    longest[slot], worst = tokens, question
        if worst is not None:
            more = f"{count:,} of {len(questions):,} questions don't fit their slots; " if count > 1 else ""
            raise UserError(
                more + self._too_long(worst, **longest).replace("holds it", "holds all" if more else "holds it")
            )

    def _excess(self, slot: str, text: str, view: Frame) -> int:
        """The tokens that a slot must hold for a text, where it doesn't; else 0. No tokenizer makes more tokens of plain ASCII
        than it has letters, so most texts are never tokenized."""
        room, prompt = getattr(self.episode, slot), slot == "prompt_len"
        image = view.width * view.height // self.episode.merged_px**2
        around = len(self.head_ids) + len(self.tail_ids) + image + 2 if prompt else 1
        if text.isascii() and len(text) + around <= room:
            return 0
        tokens = len(self.prompt_ids(text, image)) if prompt else len(self.encode(text)) + 1
        return tokens if tokens > room else 0


def reference_texts(question: Question, view: Frame) -> tuple[str, str]:
    """What fine-tuning imitates before and after the crop; nothing after where there is no box."""
    before, after = question.thoughts
    if question.box is None:
        return render_answer(before, question.answer), ""
    return render_look(before, taught_box(question.box, view), question.label), render_answer(after, question.answer)


def taught_box(box: Box, view: Frame) -> Box:
    """A reference box as it is taught: whole px of the view. A side that rounds to nothing becomes the px that its middle is in,
    the least that the protocol can say; the window of what is taught always holds the middle of the box."""
    seen = box.to(view)
    (x1, x2), (y1, y2) = _pixels(seen.x1, seen.x2, view.width), _pixels(seen.y1, seen.y2, view.height)
    return Box(x1, y1, x2, y2, view)


def _pixels(low: float, high: float, side: int) -> tuple[int, int]:
    start, stop = (min(max(round(edge), 0), side) for edge in (low, high))
    if start < stop:
        return start, stop
    middle = min(max(int((low + high) / 2), 0), side - 1)
    return middle, middle + 1
