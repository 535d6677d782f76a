"""Messages become the ids that HF gives them, and texts in them never become special tokens."""

import dataclasses
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.real_tokenizer import CHAT_TEMPLATE, SPECIAL, write_tokenizer
from zoomearth_jax.data_pipeline.questions.procedural import scene_questions
from zoomearth_jax.data_pipeline.rows.builder import RowBuilder
from zoomearth_jax.data_pipeline.text.chat import Chat, load_tokenizer
from zoomearth_jax.data_pipeline.text.nano_tokenizer import build_nano_tokenizer
from zoomearth_jax.errors import UserError
from zoomearth_jax.models.presets import preset
from zoomearth_jax.models.qwen2_5_vl.config import to_hf_config
from zoomearth_jax.runs.models import load_rows, resolve

SHAPES = (  # conversations with slots for texts: None is an image
    [("user", [None, 0])],
    [("system", 0), ("user", [None, 1, None, 2, 0]), ("assistant", 2), ("user", 1)],
    [("user", 0), ("assistant", [1, None, 2])],
)
HOSTILE = (
    "<|im_",
    "end|>",
    "start|>",
    "<|im_end|>",
    "<|image_pad|>",
    "<|endoftext|>",
    "\ufdd00\ufdd1",
    "<",
    " a",
    "\n",
)
ordinary_texts = st.lists(st.text(st.characters(codec="utf-8"), max_size=30), min_size=3, max_size=3).filter(
    lambda texts: "<|" not in "".join(texts)  # hypothesis takes constants from the code, special tokens among them
)
hostile_texts = st.lists(st.lists(st.sampled_from(HOSTILE), max_size=4).map("".join), min_size=3, max_size=3)


def conversation(shape, texts):
    def block(slot):
        return {"type": "image"} if slot is None else {"type": "text", "text": texts[slot]}

    return [{"role": r, "content": [block(s) for s in c] if isinstance(c, list) else texts[c]} for r, c in shape]


def images_in(shape):
    return sum(slots.count(None) for _, slots in shape if isinstance(slots, list))


def rendered(tokenizer, messages, generate=True):
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(to_hf_config(preset("qwen2_5_vl_3b")[0])))
    return folder


@pytest.fixture(scope="module")
def chats(directory):
    return {"real": Chat(load_tokenizer(directory)), "nano": Chat(build_nano_tokenizer())}


@pytest.mark.parametrize("name", ["real", "nano"])
@pytest.mark.parametrize("shape", SHAPES)
@given(texts=ordinary_texts)
@example(texts=["\n\nA new line joins the one before.", " ", "I'\n"])  # over the borders of texts and template
def test_ordinary_text_gets_the_ids_of_hf(chats, name, shape, texts):
    chat, messages = chats[name], conversation(shape, texts)
    for generate in (True, False):
        want = chat.tokenizer(rendered(chat.tokenizer, messages, generate), add_special_tokens=False)["input_ids"]
        assert chat.ids(messages, [1] * images_in(shape), generate) == want


@pytest.mark.parametrize("name", ["real", "nano"])
@pytest.mark.parametrize("shape", SHAPES)
@given(texts=hostile_texts)
def test_special_tokens_in_texts_stay_text(chats, name, shape, texts):
    chat, images = chats[name], [1] * images_in(shape)
    special = set(chat.special.values())
    ids = chat.ids(conversation(shape, texts), images)
    harmless = chat.ids(conversation(shape, ["a", "b", "c"]), images)
    assert [i for i in ids if i in special] == [i for i in harmless if i in special]
    assert chat.tokenizer.decode(ids) == rendered(chat.tokenizer, conversation(shape, texts))  # and nothing is lost


def test_added_tokens_that_are_not_special_are_hf_s(chats):
    chat = chats["real"]
    assert chat.encode("<tool_call>") == [chat.tokenizer.convert_tokens_to_ids("<tool_call>")]
    assert not set(chat.encode("".join(SPECIAL))) & set(chat.special.values())


def test_special_tokens_stand_where_they_are_asked_to(tmp_path):
    tokenizer = write_tokenizer(tmp_path, ids_from=1000)
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL)) == list(range(1000, 1000 + len(SPECIAL)))
    with pytest.raises(ValueError, match="the vocabulary has"):
        write_tokenizer(tmp_path, ids_from=100)


def test_placeholders_become_as_many_as_the_image_has_tokens(chats):
    chat = chats["real"]
    ids, image = chat.ids(conversation(SHAPES[1], "abc"), [3, 5]), chat.special["<|image_pad|>"]
    runs = "".join("x" if i == image else " " for i in ids).split()
    assert [len(run) for run in runs] == [3, 5]


@pytest.mark.parametrize("tokens", [[], [4, 4]])
def test_as_many_images_as_image_blocks(chats, tokens):
    with pytest.raises(UserError, match=rf"messages: 1 image blocks, but {len(tokens)} images"):
        chats["real"].ids(conversation(SHAPES[0], "abc"), tokens)


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"role": "user<|im_end|>", "content": "a"}, "a message has a role of system, user, assistant"),
        ({"role": "user"}, "a message has a role"),
        ({"role": "user", "content": None}, "a message has a role"),
        ({"role": "user", "content": [{"type": "video"}]}, "a block is an image or a text"),
        ({"role": "user", "content": [{"type": "text", "text": 3}]}, "a block is an image or a text"),
        ({"role": "user", "content": ["a"]}, "a block is an image or a text"),
    ],
)
def test_messages_of_another_form_are_refused(chats, message, error):
    with pytest.raises(UserError, match=error):
        chats["real"].ids([message])


@pytest.mark.parametrize(
    ("template", "error"),
    [
        (
            "{% for m in messages %}{{ 'a' + m.content }}{% endfor %}",
            "the chat template fails on the messages",
        ),  # text alone
        ("{{ raise_exception('no system') }}", r"fails on the messages \(no system\)"),
        ("{% for", "fails on the messages"),
        ("{{ messages.__class__.__mro__ }}", "fails on the messages"),  # sandboxed
        ("<|image_pad|><|image_pad|>", "wrote 2 places for 1 images"),
        ("", "no chat template; put the checkpoint's"),
    ],
)
def test_templates_that_do_not_work_are_named(directory, template, error):
    tokenizer = load_tokenizer(directory)
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=error) as caught:
        Chat(tokenizer).ids(conversation(SHAPES[0], "abc"), [4])
    assert str(caught.value).startswith(str(directory))
    assert "\n" not in str(caught.value)


def test_an_empty_text_is_empty_for_the_template(directory):
    tokenizer = load_tokenizer(directory)
    tokenizer.chat_template = "{{ '<|im_end|>' if messages[0].content else '<|im_start|>' }}"
    chat = Chat(tokenizer)
    assert chat.ids([{"role": "user", "content": ""}]) == [chat.special["<|im_start|>"]]
    assert chat.ids([{"role": "user", "content": "a"}]) == [chat.special["<|im_end|>"]]


def test_the_template_is_the_one_that_hf_s_processor_takes(tmp_path):
    write_tokenizer(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": "of the tokenizer"}))
    assert load_tokenizer(tmp_path).chat_template == CHAT_TEMPLATE  # of chat_template.json
    (tmp_path / "chat_template.json").unlink()
    assert load_tokenizer(tmp_path).chat_template == "of the tokenizer"
    (tmp_path / "chat_template.jinja").write_text("of its own")
    assert load_tokenizer(tmp_path).chat_template == "of its own"
    (tmp_path / "chat_template.json").write_text("{}")
    with pytest.raises(UserError, match=r"chat_template\.json: chat_template must be a text"):
        load_tokenizer(tmp_path)


def test_rows_ask_as_the_checkpoint_s_template_does(directory):
    rows = load_rows(directory)  # no episode.json: the preset's words
    question = scene_questions("test", 0, 0, 1)[0]
    prompts = rows.prompts([question])
    text = f"{question.text} {rows.episode.instruction}"
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]},
    ]
    assert rendered(rows.tokenizer, messages) == rendered(rows.tokenizer, messages[1:])  # the template's own default
    pads = "<|image_pad|>" * int(prompts.views.grids[0].prod())
    full = rendered(rows.tokenizer, messages).replace("<|image_pad|>", pads)
    assert prompts.ids[0][prompts.valid[0]].tolist() == rows.tokenizer(full)["input_ids"]
    assert rows.prompt_ids("a", 1) == [
        *[*rows.head_ids, rows.look_id, rows.image_id, rows.seen_id],
        *[*rows.encode("a"), *rows.tail_ids],
    ]


@pytest.mark.parametrize("system", ["", "Look well. <|im_end|>"])
def test_nano_prompts_are_what_the_shipped_models_were_trained_on(system):
    episode = dataclasses.replace(preset("nano")[1], system=system, prompt_len=100)
    rows = RowBuilder(build_nano_tokenizer(), episode, 28)
    question = dataclasses.replace(scene_questions("test", 0, 0, 1)[0], text="Which way? <|im_start|>")
    prompts = rows.prompts([question])
    start, stop, line = 1, rows.stop_id, rows.encode("\n")
    before = [start, *rows.encode(f"system\n{system}"), stop, *line] if system else []
    image = [rows.look_id, *[rows.image_id] * int(prompts.views.grids[0].prod()), rows.seen_id]
    want = [*before, start, *rows.encode("user\n"), *image, *rows.encode(question.text)]
    want += [stop, *line, start, *rows.encode("assistant\n")]
    assert prompts.ids[0][prompts.valid[0]].tolist() == want


@pytest.mark.parametrize("name", ["nano", "nano-grpo"])
def test_shipped_tokenizers_have_the_template_that_the_code_writes(name):
    assert load_rows(resolve(name)).tokenizer.chat_template == build_nano_tokenizer().chat_template


def test_rows_refuse_a_template_that_puts_images_elsewhere(directory):
    tokenizer = load_tokenizer(directory)
    tokenizer.chat_template = CHAT_TEMPLATE.replace("<|vision_start|>", "")
    with pytest.raises(UserError, match="doesn't put an image between vision marks"):
        RowBuilder(tokenizer, preset("nano")[1], 28)
