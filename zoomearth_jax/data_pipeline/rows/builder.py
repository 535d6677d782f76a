"""Rows of the fixed layout `[prompt | turn 1 | picture 1 | turn 2 | … | turn K]`, as NumPy arrays.

Each slot is right-padded. Two masks go with the ids of the reply (all slots after the prompt):
valid: tokens that later tokens see. Stop tokens are not among them: the assistant's message goes on after a picture, as HF's
chat template renders it, and nothing follows the last one.
target: tokens that the policy wrote, stop tokens included; the loss is on these only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from zoomearth_jax.configs.episode import CHAT_MARK, QUESTION, EpisodeConfig, layout_flags, turns_of
from zoomearth_jax.configs.prune import PruneConfig
from zoomearth_jax.data_pipeline.images.boxes import Box, Frame, view_size
from zoomearth_jax.data_pipeline.images.sources import ImageSource, global_view, mapped_view
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.data_pipeline.questions.records import one_line
from zoomearth_jax.data_pipeline.rows.looks import Looks
from zoomearth_jax.data_pipeline.text.chat import Chat
from zoomearth_jax.errors import UserError


class Views(NamedTuple):
    """Pictures for the vision encoder: uint8 pixels [I, side, side, 3] with each picture top left, merged grids [I, 2]."""

    pixels: np.ndarray
    grids: np.ndarray


def interleaved(views: Sequence[Views], empty: Views) -> Views:
    """The views of a batch's first, second, … pictures, those of a row one after the other; `empty` where there are none."""
    if len(views) < 2:
        return views[0] if views else empty
    return Views(*(np.stack(arrays, axis=1).reshape(-1, *arrays[0].shape[1:]) for arrays in zip(*views, strict=True)))


class Prompts(NamedTuple):
    """Prompt slots of a batch: ids and valid [B, prompt_len], and the overviews."""

    ids: np.ndarray
    valid: np.ndarray
    views: Views


class Replies(NamedTuple):
    """Slots after the prompt.

    Attributes:
        ids, valid, target: [B, reply_len].
        pictures: what the turns were shown, the K - 1 of a row one after the other [B x (K - 1)]; grid 0 x 0 where there is
            none.
    """

    ids: np.ndarray
    valid: np.ndarray
    target: np.ndarray
    pictures: Views

    @property
    def grids(self) -> np.ndarray:
        """Merged grids of each row's pictures, [B, K - 1, 2]."""
        return self.pictures.grids.reshape(len(self.ids), -1, 2)


class TokenIds(NamedTuple):
    """Ids that sampling and scoring need to know.

    Attributes:
        pad_id: fills slots.
        stop_ids: end a turn.
        banned_ids: are never sampled: we place them.
    """

    pad_id: int
    stop_ids: tuple[int, ...]
    banned_ids: tuple[int, ...]


class RowBuilder:
    """Turns questions into rows with a tokenizer."""

    def __init__(
        self,
        tokenizer,
        episode: EpisodeConfig,
        merged_px: int,
        generation: dict | None = None,
        processors: dict | None = None,
        prune: PruneConfig = PruneConfig(),
        note_len: int = 0,
    ):
        """Looks the special tokens up; UserError if the tokenizer lacks one, or a chat template that fits.

        Args:
            merged_px: side in px of the square that one visual token of the model covers.
            generation: what `generation_config.json` holds, eos_token_id as a list. These end tokens stop a turn beside
                <|im_end|> and <|endoftext|>; the rest is kept to be saved again.
            processors: settings of HF's processor that were beside the model (`side_files.py`); kept to be saved again.
            prune: which visual tokens the policy reads; no part of the episode, for evaluation only (see `pruned`).
            note_len: see `RowLayout`; no part of the episode either (see `with_notes`).
        """
        generation = generation or {}
        self.tokenizer, self.episode, self.processors = tokenizer, episode, processors or {}
        self.looks = Looks(episode, merged_px)
        self.layout = dataclasses.replace(episode.layout(merged_px, prune), note_len=note_len)
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
        self.question_ids("", 1)

    @property
    def tokens(self) -> TokenIds:
        """The ids that sampling and scoring need to know."""
        return TokenIds(self.pad_id, self.stop_ids, self.banned_ids)

    def replaced(self, **changes) -> RowBuilder:
        """The same with changes of its episode (see `EpisodeConfig`)."""
        return self.playing(dataclasses.replace(self.episode, **changes))

    def playing(self, episode: EpisodeConfig) -> RowBuilder:
        """The same with another episode."""
        return self._with(episode, self.layout.prune)

    def pruned(self, prune: PruneConfig) -> RowBuilder:
        """The same with visual tokens pruned. Those of the overview that are pruned leave the prompt's slot too."""
        whole = (self.layout.view_side // self.layout.merged_px) ** 2
        gone = self.layout.view_tokens - prune.kept(whole)
        return self._with(dataclasses.replace(self.episode, prompt_len=self.episode.prompt_len - gone), prune)

    def with_notes(self, slots: int) -> RowBuilder:
        """The same with so many slots after each picture for what a tool says of it."""
        return self._with(self.episode, self.layout.prune, slots)

    def _with(self, episode: EpisodeConfig, prune: PruneConfig, note_len: int | None = None) -> RowBuilder:
        note_len = self.layout.note_len if note_len is None else note_len
        px, files = self.layout.merged_px, (self.generation, self.processors)
        return RowBuilder(self.tokenizer, episode, px, *files, prune, note_len)

    def _kept(self, grids: np.ndarray) -> np.ndarray:
        """Visual tokens [B] that take slots, of pictures with merged grids [B, 2]."""
        return np.array([self.layout.prune.kept(int(tokens)) for tokens in grids.prod(-1)], int)

    def prompt_ids(self, text: str, image_tokens: int) -> list[int]:
        """Ids of a prompt by the chat template: the system message if there is one, the overview and the text, and the
        assistant's turn opened. `head_ids` and `tail_ids` are those around image and text."""
        system, blocks = self.episode.system, [{"type": "image"}, {"type": "text", "text": text}]
        messages = [{"role": "system", "content": system}] if system else []
        return self.chat.ids([*messages, {"role": "user", "content": blocks}], [image_tokens])

    def question_ids(self, asked: str, image_tokens: int) -> list[int]:
        """Ids of the prompt that asks a question, with the episode's instruction: by the chat template, or where the instruction
        spells the chat's marks itself as it stands."""
        instruction = self.episode.instruction
        if CHAT_MARK in instruction:
            return self.chat.spelled_ids(instruction, QUESTION, asked, [image_tokens])
        text = instruction.replace(QUESTION, asked) if QUESTION in instruction else f"{asked} {instruction}".strip()
        return self.prompt_ids(text, image_tokens)

    def widened(self, questions: Sequence[Question]) -> RowBuilder:
        """These rows, or where their prompt slot is too short for the questions the same with one that holds them all, in steps of
        64 tokens."""
        longest = max((self._excess(None, q.asked, self._view(q)) for q in questions), default=0)
        return self.replaced(prompt_len=-(-longest // 64) * 64) if longest else self

    def _view(self, question: Question) -> Frame:
        frame = question.image.frame
        return view_size(frame.width, frame.height, self.episode.view_px, self.layout.merged_px)

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; special tokens spelled out in it stay plain text."""
        return self.chat.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of sampled ids, without stop and pad tokens."""
        return self.tokenizer.decode([i for i in ids if i not in self.stop_ids], skip_special_tokens=False)

    def box_frame(self, image: Frame) -> Frame:
        """The frame that the model writes boxes of an image in: the pixels of its overview, or of the image with a longest side of
        the episode's `box_px`."""
        return self.looks.box_frame(image)

    def overview(self, question: Question) -> np.ndarray:
        """The question's image as the model first sees it, uint8 [h, w, 3]."""
        return global_view(question.image, self.episode.view_px, self.layout.merged_px)

    def window(self, box: Box, image_frame: Frame, source: str = "overview") -> Box:
        """The window of the original that a box in any frame asks for: what the policy sees and the rewards score.

        Args:
            source: what the box was named on: `overview` or `picture`.
        """
        return self.looks.window(box, image_frame, source)

    def crop(self, image: ImageSource, window: Box) -> np.ndarray:
        """The picture that the model is shown for a window, uint8 [h, w, 3], by the episode's `view`."""
        return mapped_view(image, self.looks.picture_map(window))

    def views(self, pictures: Sequence[np.ndarray | None], side: int | None = None) -> Views:
        """Pads pictures to canvases of `side` px, by default those of overviews; None in place of a picture leaves an empty one."""
        side, unit = side or self.layout.view_side, self.layout.merged_px
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
        kept = self._kept(views.grids)
        ids = np.full((len(questions), self.layout.prompt_len), self.pad_id, np.int32)
        valid = np.zeros(ids.shape, bool)
        for row, question in enumerate(questions):
            prompt = self.question_ids(question.asked, int(kept[row]))
            if len(prompt) > ids.shape[1]:
                raise UserError(self._too_long(question, {None: len(prompt)}))
            ids[row, : len(prompt)] = prompt
            valid[row, : len(prompt)] = True
        return Prompts(ids, valid, views)

    def pictures(self, views: Views) -> list[np.ndarray]:
        """The pictures that `views` padded, without the padding."""
        sides = views.grids * self.layout.merged_px
        return [pixels[:height, :width] for pixels, (height, width) in zip(views.pixels, sides, strict=True)]

    def supervised(self, questions: Sequence[Question]) -> tuple[Prompts, Replies]:
        """Whole rows for fine-tuning, both views read; errors as of `prompts` and `reference_replies`."""
        return self.prompts(questions), self.reference_replies(questions)

    def picture_slots(
        self, grids: np.ndarray, shown: np.ndarray | None = None, notes: Sequence[str] = ()
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids and valid [B, picture_len] of pictures with merged grids [B, 2].

        Args:
            shown: bool [B], the rows that go on; the others' slots are empty. Left out, those whose grid isn't 0 x 0.
            notes: what each row reads after its picture, cut to the slots that are left; no row anything if left out.
        """
        tokens = self._kept(grids)[:, None]
        going = tokens > 0 if shown is None else shown[:, None]
        slot = np.arange(self.layout.picture_len)[None]
        ids = np.where(slot == 0, self.look_id, np.where(slot <= tokens, self.image_id, self.seen_id))
        valid = (slot < tokens + 2) & going
        ids = np.where(valid, ids, self.pad_id).astype(np.int32)
        for row, note in enumerate(notes):
            begin = int(tokens[row, 0]) + 2
            said = self.encode(note)[: ids.shape[1] - begin] if note and going[row, 0] else []
            ids[row, begin : begin + len(said)], valid[row, begin : begin + len(said)] = said, True
        return ids, valid

    def replies(
        self, turns: Sequence[Sequence[Sequence[int]]], pictures: Views, notes: Sequence[Sequence[str]] = ()
    ) -> Replies:
        """Reply slots from the ids of each row's turns, [B][up to K], each ending with its stop token if there was room for it.

        Args:
            pictures: as of `Replies`.
            notes: what the rows read after their first, second, … picture, [up to K - 1][B].
        """
        layout, batch = self.layout, len(turns)
        ids = np.full((batch, layout.reply_len), self.pad_id, np.int32)
        valid, target = np.zeros(ids.shape, bool), np.zeros(ids.shape, bool)
        for row, own in enumerate(turns):
            for k, written in enumerate(own):
                begin = layout.turn(k).start
                slots = slice(begin, begin + len(written))
                ids[row, slots], target[row, slots] = written, True
                valid[row, slots] = ~np.isin(written, self.stop_ids)
        replies = Replies(ids, valid, target, pictures)
        for k in range(layout.num_pictures):
            grids = replies.grids[:, k]
            shown = (grids.prod(-1) > 0) | [len(own) > k + 1 and len(own[k + 1]) > 0 for own in turns]
            said = notes[k] if k < len(notes) else ()
            ids[:, layout.picture(k)], valid[:, layout.picture(k)] = self.picture_slots(grids, shown, said)
        return replies

    def reference_replies(self, questions: Sequence[Question]) -> Replies:
        """What fine-tuning imitates: the protocol with the reference boxes, and the pictures which these very texts ask for.

        Raises:
            UserError: a reference that doesn't fit its slot, or has more looks than the layout has pictures; or as of
                `Looks.references`.
        """
        turns, pictures = [], []
        for question in questions:
            if len(question.looks) > self.layout.num_pictures:
                raise UserError(self._too_many(question))
            written = self.looks.references(question)
            turns.append([self._written(question, text, k) for k, (text, _) in enumerate(written)])
            windows = [window for _, window in written[:-1]]
            seen = [None if window is None else self.crop(question.image, window) for window in windows]
            pictures += seen + [None] * (self.layout.num_pictures - len(seen))
        return self.replies(turns, self.views(pictures, self.layout.picture_side))

    def _written(self, question: Question, text: str, k: int) -> list[int]:
        ids = [*self.encode(text), self.stop_id]
        if len(ids) > self.layout.turn_lens[k]:
            raise UserError(self._too_long(question, {k: len(ids)}))
        return ids

    def _too_many(self, question: Question) -> str:
        """The message about a question whose reference takes more turns than there are."""
        need, lens = len(question.looks) + 1, self.layout.turn_lens
        flags = layout_flags(turn_lens=turns_of(lens, need - 1))
        asked = one_line(question.text[:60])
        return (
            f"question {asked!r} takes {need} turns, the layout has {len(lens)}; leave looks out, or {flags} holds it"
        )

    def _too_long(self, question: Question, lengths: dict[int | None, int]) -> str:
        """The message about a question that doesn't fit slots, those of turns by number and of the prompt by None, given with the
        tokens that it takes."""
        rooms = {None: self.layout.prompt_len} | dict(enumerate(self.layout.turn_lens))
        names = {k: "the prompt" if k is None else f"turn {k + 1}" for k in lengths}
        took = ", ".join(f"{n} tokens for the {rooms[k]} of {names[k]}" for k, n in lengths.items())
        flags: dict[str, Any] = {"prompt_len": lengths[None]} if None in lengths else {}
        if set(lengths) - {None}:
            flags["turn_lens"] = tuple(lengths.get(k, room) for k, room in enumerate(self.layout.turn_lens))
        asked = one_line(question.text[:60])
        return f"question {asked!r} takes {took}; shorten it, or {layout_flags(**flags)} holds it"

    def check_prompts(self, questions: Sequence[Question]) -> None:
        """Checks that all prompts fit, from nothing but the texts and the images' sizes.

        Raises:
            UserError: some don't: how many, the longest, and the settings that hold all.
        """
        self._check(questions, lambda question: ())

    def check_supervised(self, questions: Sequence[Question]) -> None:
        """Checks what `check_prompts` checks, of prompts and references."""

        most = max(questions, key=lambda question: len(question.looks), default=None)
        if most and len(most.looks) > self.layout.num_pictures:
            raise UserError(self._too_many(most))
        self._check(questions, lambda question: [text for text, _ in self.looks.references(question)])

    def _check(self, questions: Sequence[Question], replies: Callable[[Question], Sequence[str]]) -> None:
        longest: dict[int | None, int] = {}
        worst, count = None, 0
        for question in questions:
            view = self._view(question)
            texts = {None: question.asked} | dict(enumerate(replies(question)))
            over = {k: n for k, text in texts.items() if (n := self._excess(k, text, view))}
            count += bool(over)
            for k, tokens in over.items():
                if tokens > longest.get(k, 0):
                    longest[k], worst = tokens, question
        if worst is not None:
            more = f"{count:,} of {len(questions):,} questions don't fit their slots; " if count > 1 else ""
            said = self._too_long(worst, longest)
            raise UserError(more + said.replace("holds it", "holds all" if more else "holds it"))

    def _excess(self, k: int | None, text: str, view: Frame) -> int:
        """The tokens that a slot (of turn k, or the prompt's) must hold for a text, where it doesn't; else 0. No tokenizer makes
        more tokens of plain ASCII than it has letters, so most texts are never tokenized."""
        room = self.layout.prompt_len if k is None else self.layout.turn_lens[k]
        image = self.layout.prune.kept(view.width * view.height // self.layout.merged_px**2)
        around = 1
        if k is None:
            around = len(self.head_ids) + len(self.tail_ids) + len(self.episode.instruction) + image + 3
        if text.isascii() and len(text) + around <= room:
            return 0
        tokens = len(self.question_ids(text, image)) if k is None else len(self.encode(text)) + 1
        return tokens if tokens > room else 0
