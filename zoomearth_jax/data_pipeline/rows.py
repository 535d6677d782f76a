"""Rows of the fixed layout `[prompt | stage 1 | crop | stage 2]`, as NumPy arrays.

Each slot is right-padded. Two masks go with the ids of the reply (all slots after the prompt):
valid: tokens that later tokens see. Stop tokens are not among them: the turn goes on after a crop, as HF's chat template
renders it, and nothing follows the last one.
target: tokens that the policy wrote, stop tokens included; the loss is on these alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from zoomearth_jax.configs.episode import EpisodeConfig
from zoomearth_jax.data_pipeline.boxes import Box, Frame, crop_window
from zoomearth_jax.data_pipeline.chat import Chat
from zoomearth_jax.data_pipeline.images import ImageSource, global_view, view_of
from zoomearth_jax.data_pipeline.protocol import parse_box, render_answer, render_look
from zoomearth_jax.data_pipeline.questions import Question
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
            text = f"{question.text} {self.episode.instruction}".strip()
            prompt = self.prompt_ids(text, int(views.grids[row].prod()))
            if len(prompt) > ids.shape[1]:
                tokens = len(self.encode(text))
                room = tokens - (len(prompt) - ids.shape[1])
                raise UserError(
                    f"question of {tokens} tokens, the prompt slot holds {room}: {question.text[:60]!r}; "
                    "shorten it or raise prompt_len"
                )
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
            if question.box is None:
                stage1.append(
                    self._written(render_answer(question.thoughts[0], question.answer), self.episode.stage1_len)
                )
                stage2.append([])
                crops.append(None)
                continue
            view = self.view_frame(overview)
            text = render_look(question.thoughts[0], question.box.to(view), question.label)
            stage1.append(self._written(text, self.episode.stage1_len))
            box = parse_box(text, view).box or question.box  # a box under one px of the view rounds to nothing
            crops.append(self.crop(question.image, self.window(box, question.image.frame)))
            stage2.append(self._written(render_answer(question.thoughts[1], question.answer), self.episode.stage2_len))
        return self.replies(stage1, stage2, self.views(crops))

    def _written(self, text: str, room: int) -> list[int]:
        ids = [*self.encode(text), self.stop_id]
        if len(ids) > room:
            raise UserError(f"a reference of {len(ids)} tokens doesn't fit its slot of {room}: {text[:60]!r}")
        return ids
