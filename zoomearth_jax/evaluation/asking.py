"""Asking a model from Python: `load` a policy, `ask` it about images, and see what it did."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import PIL.Image
from flax import nnx
from jax.sharding import Mesh

from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.configs.episode import LayoutConfig
from zoomearth_jax.configs.mesh import MeshConfig
from zoomearth_jax.configs.rollout import RolloutConfig
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.configs.tools import ToolsConfig
from zoomearth_jax.data_pipeline.images.boxes import Box, Frame
from zoomearth_jax.data_pipeline.images.given import as_source
from zoomearth_jax.data_pipeline.images.sources import ImageSource
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.data_pipeline.questions.scenes import looks_like_scene
from zoomearth_jax.errors import UserError
from zoomearth_jax.hardware.tpu_flags import skip_missing_tpus
from zoomearth_jax.reports.pictures import annotate
from zoomearth_jax.rl.episode import Episode
from zoomearth_jax.rl.rollout.engine import RolloutEngine
from zoomearth_jax.rl.rollout.programs import Weights
from zoomearth_jax.runs.models import SHIPPED, LoadedModel, existing, load_model
from zoomearth_jax.runs.start import on_mesh
from zoomearth_jax.tools.image_tool import ImageTool
from zoomearth_jax.tools.registry import find_tools
from zoomearth_jax.tools.tool import Outcome


@dataclasses.dataclass(frozen=True)
class AnswerTurn:
    """One turn of an answer.

    Attributes:
        text: what the model wrote.
        box: what it named, in px of the original; None where it named no valid box.
        window: the part of the original that it was shown for it, in px of the original; None where it was shown nothing.
        picture: the window as it was shown, uint8 [h, w, 3]; None where it was shown nothing.
        note: what it read after the picture; empty where a tool said nothing.
        outcomes: what came of the image tools that it called, see docs/tools.md.
        source: what the box was named on, see `Request`.
    """

    text: str
    box: Box | None
    window: Box | None
    picture: np.ndarray | None = dataclasses.field(default=None, repr=False, compare=False)
    note: str = ""
    outcomes: tuple[Outcome, ...] = ()
    source: str = "overview"


@dataclasses.dataclass(frozen=True, repr=False)
class Answer:
    """What came of one question. A notebook shows it as a picture.

    Attributes:
        question: what was asked.
        answer: the final answer; None where the model gave none.
        box: the box of the last picture that the model saw, or without pictures the last one that it named, in px of the
            original; None without a valid one.
        turns: what it did, at least one turn.
        note: what to know about the answer, such as that the model can't know such images; empty if nothing.
        overview: the image as the model first saw it, uint8 [h, w, 3].
        episode: all that the engine recorded; its boxes are in px of the overview.
    """

    question: str
    answer: str | None
    box: Box | None
    turns: tuple[AnswerTurn, ...]
    note: str
    overview: np.ndarray = dataclasses.field(compare=False)
    episode: Episode = dataclasses.field(compare=False)

    @classmethod
    def of(cls, question: Question, episode: Episode, overview: np.ndarray, note: str = "") -> Answer:
        """The answer that an episode gives to a question."""
        frame = question.image.frame
        turns = tuple(
            AnswerTurn(
                text=turn.text,
                box=_in(frame, turn.request.box if turn.request else None),
                window=turn.request.window if turn.request and turn.picture is not None else None,
                picture=turn.picture,
                note=turn.note,
                outcomes=turn.outcomes,
                source=turn.request.source if turn.request else "overview",
            )
            for turn in episode.turns
        )
        return cls(question.asked, episode.answer, _in(frame, episode.box), turns, note, overview, episode)

    def show(self) -> PIL.Image.Image:
        """The overview with all boxes that the model named, and beside it what it was shown; enlarged to be looked at."""
        return annotate(self.overview, self.episode.pictures, [(box, "predicted") for box in self.episode.boxes])

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.show().save(file, format="PNG")
        return file.getvalue()

    def __repr__(self) -> str:
        box = None if self.box is None else tuple(round(c) for c in self.box.corners)
        note = f", note={self.note!r}" if self.note else ""
        return f"Answer({self.answer!r}, box={box}, turns={len(self.turns)}{note})"


def _in(frame: Frame, box: Box | None) -> Box | None:
    return box.to(frame) if box else None


class LoadedPolicy:
    """A model that can be asked. Its programs are compiled when they are first used, once for each number of questions.

    Attributes:
        name: the name by which it was loaded.
        directory: where its files are.
        model: the model itself, for logits.
        rows: its tokenizer, and how it plays an episode.
    """

    def __init__(self, name: str | Path, loaded: LoadedModel, mesh: Mesh, gather: bool):
        """Takes a model that was loaded with `mesh` in context; see `load`.

        Args:
            gather: see `MeshConfig`.
        """
        self.name, self.directory = str(name), existing(name)
        self.model, self.rows = loaded
        # one row's slots weigh nothing beside the weights: all at once, one program a turn
        config = RolloutConfig(bucket=0)
        self._mesh, self._engine = mesh, RolloutEngine(self.model, self.rows, mesh, gather, config)
        self._gather, self._config = gather, config
        self._params = nnx.state(self.model, nnx.Param)

    def __repr__(self) -> str:
        return f"LoadedPolicy({self.name!r})"

    @property
    def mesh(self) -> Mesh:
        """The devices that hold it."""
        return self._mesh

    def weights(self) -> Weights:
        """The parameters as compiled programs take them."""
        with jax.set_mesh(self._mesh):
            return self._engine.weights(self._params)

    def ask(
        self,
        image: Any,
        question: str | Sequence[str] | None = None,
        *,
        temperature: float | None = None,
        top_k: int = 0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        tools: Sequence[str | ImageTool] = (),
        tool_words: str = "",
        tool_settings: ToolsConfig = ToolsConfig(),
    ) -> Answer | list[Answer]:
        """Answers one question, or all questions of a list at once.

        Args:
            image: a path (of a file, or of a tile store's image as STORE/NAME), an array uint8 [h, w, 3] or [h, w], a picture
                of Pillow's, an `Image` with settings, or a list of these. One image goes with every question of a list.
            question: a text, which is asked about every image of a list, or a list of texts. Without it `image` is a
                `Question`, or a list of them.
            temperature, top_k, top_p, repetition_penalty: see `SamplingConfig`; temperature 0 takes the likeliest tokens.
            seed: random seed of sampling; the same seed gives the same answers.
            tools: image tools that the model is offered and may call, by name or as they are; docs/tools.md lists them. Programs
                are compiled anew for each such call.
            tool_words: the words that offer them, with {tools} where their schemas go; by default those of Qwen2.5.
            tool_settings: how they run.

        Returns:
            one answer; a list of them in the order of the questions where either is a list.

        Raises:
            UserError: an image that can't be read, a question that is too long for its slot, or lists of different lengths.
        """
        sampling = SamplingConfig(temperature, top_k, top_p, repetition_penalty)
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
            raise UserError(f"seed: {seed!r}; give a whole number")
        questions = _questions(image, question)
        engine, tool = self._with_tools(questions, tools, tool_words, tool_settings)
        with jax.set_mesh(self._mesh):
            key, look = jax.random.key(int(seed)), self._look(engine, questions)
            played = engine(self._params, questions, key, sampling=sampling, look=look, tool=tool)
        answers = [
            Answer.of(question, episode, overview, self._note(overview))
            for question, episode, overview in zip(questions, played.episodes, played.overviews, strict=True)
        ]
        several = isinstance(image, list | tuple) or isinstance(question, list | tuple)
        return answers if several else answers[0]

    def _with_tools(
        self, questions: list[Question], given: Sequence[str | ImageTool], words: str, settings: ToolsConfig
    ):
        """The engine that plays with these tools, and the tool that runs them; the model's own without any."""
        if not given:
            return self._engine, None
        tools = find_tools(given, settings)
        from zoomearth_jax.tools.toolbox import Toolbox, rows_with_tools  # needs the extra `tools`

        rows = rows_with_tools(self.rows, tools, words).widened(questions)
        engine = RolloutEngine(self.model, rows, self._mesh, self._gather, self._config)
        return engine, Toolbox(rows, tools, settings)

    def _look(self, engine: RolloutEngine, questions: list[Question]):
        """What the questions show first; an image that several of them share is read once."""
        shared = {id(question.image): question for question in questions}
        overviews = dict(zip(shared, engine.readers.map(engine.rows.overview, shared.values()), strict=True))
        return engine.send(engine.rows.prompts(questions, [overviews[id(q.image)] for q in questions]))

    def _note(self, overview: np.ndarray) -> str:
        if self.name in SHIPPED and not looks_like_scene(overview):
            return f"{self.name} knows procedural scenes only; this image is none"
        return ""


def load(
    name: str | Path,
    *,
    compute: ComputeConfig = ComputeConfig(),
    mesh: MeshConfig = MeshConfig(),
    layout: LayoutConfig = LayoutConfig(),
) -> LoadedPolicy:
    """Loads a model to be asked.

    Args:
        name: `nano-grpo`, a model directory, a run (its last checkpoint is taken), or a name of the Hugging Face hub such as
            Qwen/Qwen2.5-VL-3B-Instruct, which is downloaded into the hub's cache if it isn't there.
        compute: number types and backends; `ComputeConfig(param_dtype="bfloat16")` halves a large model's memory.
        mesh: how the devices of one process share a model that one of them can't hold.
        layout: slots and views other than the model's own, such as `LayoutConfig(prompt_len=640)` for long questions.

    Raises:
        UserError: no such model, one of another architecture, or settings that don't fit.
    """
    skip_missing_tpus()
    with on_mesh(mesh, name, processes=False) as devices:
        return LoadedPolicy(name, load_model(name, compute, devices, layout), devices, mesh.gather)


def _questions(image: Any, question: Any) -> list[Question]:
    """What is asked, one image brought to all questions or one question to all images."""
    if question is None:
        given = list(image) if isinstance(image, list | tuple) else [image]
        if not given or not all(isinstance(one, Question) for one in given):
            raise UserError("ask: give an image and a question, or a Question, or a list of them")
        return given
    images = _sources(image) if isinstance(image, list | tuple) else as_source(image)
    texts = list(question) if isinstance(question, list | tuple) else question
    if isinstance(images, list) and isinstance(texts, list) and len(images) != len(texts):
        raise UserError(f"ask: {len(images)} images and {len(texts)} questions; give as many of both, or one of either")
    count = max(len(given) if isinstance(given, list) else 1 for given in (images, texts))
    images = images if isinstance(images, list) else [images] * count
    texts = texts if isinstance(texts, list) else [texts] * count
    if not images or not texts:
        raise UserError("ask: an empty list; give at least one image and one question")
    for text in texts:
        if not isinstance(text, str):
            raise UserError(f"ask: a question is a text, not a {type(text).__name__}")
    return [Question(source, text, answer="", level="global") for source, text in zip(images, texts, strict=True)]


def _sources(images: Sequence[Any]) -> list[ImageSource]:
    """What is given as images; what can't be taken is named by its place."""
    sources = []
    for number, image in enumerate(images, 1):
        try:
            sources.append(as_source(image))
        except UserError as error:
            said = str(error).removeprefix("image: ")
            raise UserError(f"image {number} of {len(images)}: {said}") from None
    return sources
