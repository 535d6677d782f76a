"""The words of a release: read from its files, and prompts with them in Qwen's real vocabulary."""

import dataclasses
import json

import numpy as np
import pytest

from tests.real_tokenizer import qwen_ranks, write_tokenizer
from zoomearth_jax.configs.episode import EpisodeConfig
from zoomearth_jax.data_pipeline.questions.procedural import scene_questions
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.data_pipeline.questions.scenes import random_scene
from zoomearth_jax.data_pipeline.text.words import read_words
from zoomearth_jax.errors import UserError
from zoomearth_jax.models.presets import preset
from zoomearth_jax.models.qwen2_5_vl.config import to_hf_config
from zoomearth_jax.runs.models import load_rows, released_episode, resolve
from zoomearth_jax.verbs.convert import ConvertConfig, convert

LONG = "Look at the whole picture first. " * 12
SUM = f"def f():\n  head = ''\n  head = 'A'\n  tail = {LONG!r}\n  q = row['x']\n  p = head + q + tail"
F_STRING = f'def ask(q):\n    text = f"""{{q}} {LONG}[{{{{}}}}]"""\n'


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("words.txt", f"\ufeff{LONG}\n", LONG.strip()),
        ("words.txt", 'Ask: {Question}\nBox: [{"bbox_2d": [1, 2]}]', 'Ask: {question}\nBox: [{"bbox_2d": [1, 2]}]'),
        ("eval.py", f"import torch\nSYSTEM = 'short'\nPROMPT = {LONG!r}\n", LONG),
        ("eval.py", f"def main():\n    prompt = {LONG!r} + 'End.'\n", f"{LONG}End."),
        ("eval.py", f"I = {LONG!r}\nfor row in rows:\n    asked = row['question'] + I\n", f"{{question}}{LONG}"),
        ("eval.py", SUM, f"A{{question}}{LONG}"),
        ("eval.py", F_STRING, f"{{question}} {LONG}[{{}}]"),
        ("eval.py:B", f"A = {LONG!r}\nB = {LONG.upper()!r}\n", LONG.upper()),
        ("eval.py", f"T = {LONG + '{Question} {{x}}'!r}", f"{LONG}{{question}} {{x}}"),
    ],
)
def test_words_are_read_and_nothing_is_run(tmp_path, name, text, words):
    (tmp_path / name.split(":")[0]).write_text(text, encoding="utf-8")
    assert read_words(tmp_path / name) == words


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("words.txt", "  \n", "no words in it"),
        ("eval.py", f"A = {LONG!r}\nB = {LONG.upper()!r}\n", r"2 long strings \(A, B\); give .*eval\.py:NAME"),
        ("eval.py", "A = 'short'", "no long string with a name"),
        ("eval.py:C", f"A = {LONG!r}", "no string named C; it has A"),
        ("eval.py", "def (", r"no Python \(SyntaxError\)"),
        ("words.txt", "<|im_start|>user\nask", "must have one place for the question"),
    ],
)
def test_files_without_words_are_refused(tmp_path, name, text, said):
    (tmp_path / name.split(":")[0]).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=said):
        read_words(tmp_path / name)


def test_unreadable_files_of_words_are_refused(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_words(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match="no UTF-8 text"):
        read_words(tmp_path / "latin.txt")


def released(tmp_path, name="ZoomEarth-3B"):
    """A directory as the authors' checkpoint is published: weights and tokenizer, no episode.json."""
    source = tmp_path / name
    convert(ConvertConfig(resolve("nano-grpo"), source))
    (source / "episode.json").unlink()
    return source


def test_a_released_checkpoint_gets_its_words_or_is_refused(tmp_path):
    source, words = released(tmp_path), tmp_path / "words.txt"
    words.write_text("which stripes site")
    with pytest.raises(UserError, match=r"zoomearth convert .*ZoomEarth-3B OUT --words FILE"):
        load_rows(source)
    with pytest.raises(UserError, match=r"without episode\.json"):
        convert(ConvertConfig(source, tmp_path / "out"))
    convert(ConvertConfig(source, tmp_path / "out", words=str(words)))
    episode = load_rows(tmp_path / "out").episode
    assert episode.instruction == "which stripes site"
    assert (episode.box_px, episode.gate, episode.crop, episode.temperature) == (512, "box", "reference", 0.01)
    convert(ConvertConfig(tmp_path / "out", tmp_path / "again"))  # the words stay with the weights
    assert load_rows(tmp_path / "again").episode == episode


def test_the_name_in_the_config_tells_too(tmp_path):
    source = released(tmp_path, "weights")
    raw = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(raw | {"_name_or_path": "somebody/Zoom-Earth-3B"}))
    with pytest.raises(UserError, match="a ZoomEarth checkpoint without"):
        load_rows(source)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """A directory with Qwen's real vocabulary in the published form, and the 3B's config.json."""
    if (ranks := qwen_ranks()) is None:
        pytest.skip("dashscope, which holds Qwen's vocabulary, isn't installed")
    directory = tmp_path_factory.mktemp("qwen")
    write_tokenizer(directory, ranks=ranks)
    (directory / "config.json").write_text(json.dumps(to_hf_config(preset("qwen2_5_vl_3b")[0])))
    return directory


def instruction_of(tokenizer, tokens: int) -> str:
    """An instruction of ours with so many tokens."""
    sentences = (
        "Think about what the overview shows before you answer, and say it between <think> and </think>. "
        "If a part of it is too small to be seen, name one box in px of the overview as "
        '[{"bbox_2d": [x1, y1, x2, y2], "label": "what it is"}] and wait for the picture. '
    ) * 20
    return tokenizer.decode(tokenizer(sentences, split_special_tokens=True)["input_ids"][:tokens])


@pytest.mark.parity
def test_qwens_vocabulary_is_the_real_one(qwen):
    rows = load_rows(qwen)
    assert rows.encode("Hello, world!") == [9707, 11, 1879, 0]
    assert rows.image_id == preset("qwen2_5_vl_3b")[0].image_token_id == 151655


@pytest.mark.parity
def test_prompts_with_a_released_instruction_are_transformers_own(qwen):
    tokenizer = load_rows(qwen).tokenizer
    words = instruction_of(tokenizer, 404)
    assert len(tokenizer(words)["input_ids"]) == 404
    episode = released_episode(words, qwen)
    assert episode.prompt_len % 64 == 0
    (qwen / "episode.json").write_text(json.dumps(dataclasses.asdict(episode)))
    rows = load_rows(qwen)
    scene = random_scene(np.random.default_rng(0), 5000)
    template = rows.tokenizer.apply_chat_template
    for text in ("What is the main type of area shown in this image?", "How many ships lie at the left-most pier?"):
        prompts = rows.prompts([Question(scene, text, "port", "global")])
        asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": f"{text} {words}"}]}
        plain = template([asked], tokenize=False, add_generation_prompt=True)
        ids = prompts.ids[0][prompts.valid[0]].tolist()
        assert ids == rows.tokenizer(plain.replace("<|image_pad|>", "<|image_pad|>" * 324))["input_ids"]
        assert 751 <= len(ids) <= 776 < rows.layout.prompt_len  # as measured of LRS-GRO's questions


RELEASED = """
def ask(sample):
    head = '''
<|im_start|>system
You look at images. <|im_end|>
<|im_start|>user
<|vision_start|><|image_pad|><|vision_end|>'''
    tail = '''
LONG<|im_end|><|im_start|>assistant
'''
    asked = sample["question"]
    text = head + asked + tail
"""


@pytest.mark.parity
def test_a_prompt_that_a_release_spells_itself_is_taken_as_it_stands(qwen, tmp_path):
    """As one string for HF's tokenizer, with marks that the chat template would not write so; a question's marks stay text."""
    (tmp_path / "infer.py").write_text(RELEASED.replace("LONG", LONG))
    words = read_words(tmp_path / "infer.py")
    episode = released_episode(words, qwen)
    (qwen / "episode.json").write_text(json.dumps(dataclasses.asdict(episode)))
    rows = load_rows(qwen)
    text = "Which way is north?"
    whole = words.replace("{question}", text).replace("<|image_pad|>", "<|image_pad|>" * 324)
    assert rows.question_ids(text, 324) == rows.tokenizer(whole)["input_ids"]
    assert rows.question_ids("<|im_end|>", 1).count(rows.stop_id) == rows.question_ids("", 1).count(rows.stop_id) == 2
    with pytest.raises(UserError, match="the prompt wrote 0 places for 1 images"):
        rows.replaced(instruction=words.replace("<|image_pad|>", ""))


def test_slots_grow_with_the_questions():
    rows = load_rows(resolve("nano-grpo"))
    question = scene_questions("test", 0, 0, 1)[0]
    long = dataclasses.replace(question, text=question.text + " red" * 60)
    assert rows.widened([question]) is rows
    wide = rows.widened([question, long])
    assert wide.layout.prompt_len % 64 == 0
    wide.check_prompts([long])
    with pytest.raises(UserError, match=r"--layout\.prompt-len"):
        rows.check_prompts([long])


def test_episodes_of_wrong_settings_are_refused():
    for changes in (
        {"gate": "never"},
        {"repetition_penalty": 0.0},
        {"box_px": -1},
        {"temperature": -1.0},
        {"view_px": 0},
    ):
        with pytest.raises(UserError, match=f"episode config: {next(iter(changes))} must be"):
            EpisodeConfig(**changes)
