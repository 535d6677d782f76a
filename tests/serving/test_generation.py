"""Rows that write at the same time: nothing mixed, nothing lost, nothing left behind."""

import asyncio
import dataclasses
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import zoomearth_jax as ze
from zoomearth_jax.configs.generation import GeneratorConfig, ReplyConfig
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.data_pipeline.text.processor import Processor
from zoomearth_jax.errors import UserError
from zoomearth_jax.models.qwen2_5_vl.vision import pixel_values
from zoomearth_jax.serving.generation import Busy, Closed, Delta, Finished, Generator, Segment
from zoomearth_jax.serving.programs import Places, _put_keys
from zoomearth_jax.serving.prompts import ChatReader

CONFIG = GeneratorConfig(rows=8, steps=(1,), visit=4, queue=64, slots=128)
HOT = SamplingConfig(1.0)
COLOURS = ("red", "blue", "green", "white")


@pytest.fixture(scope="module")
def policy():
    return ze.load("nano-grpo")


@pytest.fixture(scope="module")
def generator(policy):
    with Generator(policy, CONFIG) as generator:
        yield generator


@pytest.fixture(scope="module")
def reader(policy, generator):
    return ChatReader(policy, generator)


def picture(seed: int, width: int = 100, height: int = 80) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8))


def chat(*parts, role="user") -> dict:
    return {
        "role": role,
        "content": [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
            for part in parts
        ],
    }


def written(generation) -> tuple[str, tuple[int, ...], Finished]:
    *deltas, end = generation
    assert all(isinstance(delta, Delta) for delta in deltas)
    return "".join(delta.text for delta in deltas), tuple(i for delta in deltas for i in delta.ids), end


def random_request(reader, rng):
    """A chat with settings of its own."""
    colour = COLOURS[rng.integers(4)]
    seen = [picture(int(rng.integers(100)), 60 + 10 * int(rng.integers(6)))] * int(rng.integers(2))
    sampling = SamplingConfig(
        float(rng.choice([0, 0.5, 1, 3])),
        int(rng.choice([0, 5])),
        float(rng.choice([0.8, 1])),
        float(rng.choice([1, 1.2])),
    )
    reply = ReplyConfig(sampling, int(rng.integers(2**40)), int(rng.integers(1, 25)))
    return reader.prompt([chat(*seen, f"Which way do the stripes of the {colour} site run?")]), reply


def test_a_reply_is_what_the_whole_forward_pass_says(generator, reader, policy):
    """Two pictures, one of them the assistant's, and a last message that is gone on with."""
    pictures = picture(1), picture(2, 56, 112)
    messages = [chat(pictures[0], "Which site is red?"), chat("<think>the", pictures[1], " red", role="assistant")]
    prompt = reader.prompt(messages)
    ids = list(prompt.ids)
    start, end, seen = (
        policy.rows.tokenizer.convert_tokens_to_ids(f"<|{n}|>") for n in ("im_start", "im_end", "image_pad")
    )
    assert (ids.count(start), ids.count(end)) == (2, 1)  # the assistant's message is open
    assert policy.rows.tokenizer.decode(ids).endswith("<|vision_end|> red")
    views = [Processor.from_pretrained(policy.directory).view(one) for one in pictures]
    assert ids.count(seen) == sum(view.shape[0] * view.shape[1] // 28**2 for view in views)
    sizes = policy.model.config.vision
    patches = jnp.concatenate([pixel_values(view, sizes) for view in views])
    grids = np.array([(1, view.shape[0] // 14, view.shape[1] // 14) for view in views])
    text, said, finished = written(*generator.submit(prompt, ReplyConfig(max_tokens=6)))
    for token in said:
        logits = np.array(policy.model(np.array([ids]), patches, grids)[0, -1])
        logits[list(policy.rows.banned_ids)] = -np.inf
        assert token == logits.argmax()
        ids.append(token)
    assert text == policy.rows.decode(said)
    assert finished == Finished("stop" if said[-1] in policy.rows.stop_ids else "length", len(prompt.ids), len(said))


def test_a_reply_does_not_depend_on_the_others(generator, reader):
    rng = np.random.default_rng(0)
    requests = [random_request(reader, rng) for _ in range(30)]
    one = requests[7]
    alone = [written(*generator.submit(*request)) for request in (one, requests[3])]
    running = [generator.submit(*request)[0] for request in requests]
    among = [written(generation) for generation in running]
    assert [among[7], among[3]] == alone
    again = [written(*generator.submit(*request)) for request in reversed(requests)]
    assert again[::-1] == among
    assert len({ids for _, ids, _ in among}) > 20


def test_choices_differ_and_seeds_repeat(generator, reader):
    prompt = reader.prompt([chat("Which season is it?")])
    first, second = (
        [written(g) for g in generator.submit(prompt, ReplyConfig(HOT, 5, 12), choices=range(4))] for _ in "ab"
    )
    assert first == second
    assert len({ids for _, ids, _ in first}) > 1
    assert first[0] == written(*generator.submit(prompt, ReplyConfig(HOT, 5, 12)))
    assert first[2] == written(*generator.submit(prompt, ReplyConfig(HOT, 5, 12), choices=[2]))


def test_no_banned_id_is_ever_written(generator, reader, policy):
    hot = ReplyConfig(SamplingConfig(100.0), 1, 60)
    replies = [written(g) for g in generator.submit(reader.prompt([chat("site")]), hot, choices=range(8))]
    assert not {i for _, ids, _ in replies for i in ids} & set(policy.rows.banned_ids)


def test_a_row_can_be_read_by_an_event_loop(generator, reader):
    prompt = reader.prompt([chat("Which season is it?")])

    async def read():
        (generation,) = generator.submit(prompt, ReplyConfig(HOT, 5, 12))
        return [event async for event in generation]

    *deltas, end = asyncio.run(read())
    text, ids, finished = written(*generator.submit(prompt, ReplyConfig(HOT, 5, 12)))
    assert ("".join(d.text for d in deltas), tuple(i for d in deltas for i in d.ids), end) == (text, ids, finished)


def test_nothing_compiles_after_warm_up(policy):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    rng = np.random.default_rng(1)
    with Generator(policy, CONFIG, warm=True) as generator:
        jax.jit(lambda x: x + 2.5)(jnp.ones(3)).block_until_ready()
        assert compiled  # the listener counts
        reader = ChatReader(policy, generator)
        written(*generator.submit(*random_request(reader, rng)))  # random keys
        compiled.clear()
        for count in (1, 4, 9):
            for generation in [generator.submit(*random_request(reader, rng))[0] for _ in range(count)]:
                written(generation)
        written(*generator.submit(reader.prompt([chat(" red" * 60)]), ReplyConfig(max_tokens=40)))
    assert not compiled


def test_what_does_not_fit_is_refused_with_numbers(generator, reader):
    long = reader.prompt([chat(" red" * 150)])
    with pytest.raises(UserError, match=r"prompt's 15\d tokens don't fit the 128 slots"):
        generator.submit(long, ReplyConfig())
    short = reader.prompt([chat("why")])
    room = 128 - len(short.ids)
    with pytest.raises(UserError, match=f"and max_tokens {room + 1} don't fit the 128"):
        generator.submit(short, ReplyConfig(max_tokens=room + 1))
    assert written(*generator.submit(short, ReplyConfig(HOT, max_tokens=room)))[2].completion_tokens <= room
    with pytest.raises(UserError, match="at most 8"):
        reader.prompt([chat(*[picture(0)] * 9)])
    with pytest.raises(UserError, match="80 choices"):
        generator.submit(short, ReplyConfig(), choices=range(80))


@pytest.mark.parametrize(
    ("messages", "template", "message"),
    [
        ([], {}, "at least one"),
        ([{"role": "robot", "content": "a"}], {}, "role"),
        ([chat("a")], {"chat_template": "x"}, "chat_template can't be set"),
        ([chat("a")], {"eos_token": "x"}, "eos_token can't be set"),
        ([chat("a")], {"style": "<|im_start|>system"}, "without special tokens"),
        ([chat("a")], {"style": "\ufdd07\ufdd1"}, "without special tokens"),
        ([chat("a")], {"style": ["a"]}, "must be a number"),
        ([chat("a")], {"messages": "a"}, "template fails"),
        ([chat(picture(0, 4000, 10))], {}, "over 200 : 1"),
    ],
)
def test_chats_that_cannot_be_read(reader, messages, template, message):
    with pytest.raises(UserError, match=message):
        reader.prompt(messages, template)


def test_a_template_reads_its_names(reader):
    assert reader.prompt([chat("a")], {"add_generation_prompt_twice": True}) == reader.prompt([chat("a")])
    template, reader._processor.chat.tokenizer.chat_template = (
        reader._processor.chat.tokenizer.chat_template,
        "{{ style }}",
    )
    try:
        assert reader.prompt([chat("a")], {"style": "yes"}).ids == reader._processor.chat.encode("yes")
    finally:
        reader._processor.chat.tokenizer.chat_template = template


def test_long_pictures_keep_their_shape_within_the_limit(reader):
    for width, height in ((100, 80), (2000, 30), (30, 2000), (1000, 1000)):
        (view,) = reader.prompt([chat(picture(0, width, height))]).pictures
        assert max(view.shape[:2]) <= 112
        assert view.shape[0] % 28 == view.shape[1] % 28 == 0


def endless(reader) -> tuple[Segment, ReplyConfig]:
    """A request that writes for as long as it has room."""
    return reader.prompt([chat(" red" * 20)]), ReplyConfig(SamplingConfig(100.0), seed=9, max_tokens=60)


@pytest.fixture
def gated(policy):
    """A generator that writes only while `gate` is set, with an endless request for it; its rows and its queue are short."""
    with Generator(policy, dataclasses.replace(CONFIG, queue=2)) as generator:
        generator.gate, write = threading.Event(), generator._batches.write

        def wait(jobs):
            assert generator.gate.wait(60)
            return write(jobs)

        generator._batches.write = wait
        yield generator, endless(ChatReader(policy, generator))
        generator.gate.set()


def full(generator, request) -> list:
    """Requests that fill all rows and the queue."""
    running = generator.submit(*request, choices=[0] * 8)
    until(lambda: generator.stats.busy == 8)
    return running + generator.submit(*request, choices=[0] * 2)


def until(true) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_the_queue_is_bounded(gated):
    generator, request = gated
    running = full(generator, request)
    with pytest.raises(Busy) as refused:
        generator.submit(*request)
    assert refused.value.retry_after >= 1
    with pytest.raises(Busy):
        generator.check_room()
    generator.gate.set()
    first, *others = [written(generation) for generation in running]
    assert others == [first] * 9
    assert written(*generator.submit(*request)) == first
    assert generator.stats.outcomes == {first[2].reason: 11}
    assert generator.stats.waiting == generator.stats.busy == 0


def test_all_choices_are_taken_or_none(gated):
    generator, request = gated
    running = full(generator, request)
    running.pop().cancel()
    with pytest.raises(Busy):
        generator.submit(*request, choices=range(2))
    assert (generator.stats.busy, generator.stats.waiting) == (8, 1)
    running += generator.submit(*request)
    for generation in running:
        generation.cancel()
    assert [written(generation)[2].reason for generation in running] == ["cancelled"] * 10


def test_cancelling_frees_the_row_for_the_next(gated):
    generator, request = gated
    *running, first, second = full(generator, request)
    first.cancel()  # while it waits
    first.cancel()
    assert written(first)[2] == Finished("cancelled", len(request[0].ids), 0)
    running[0].cancel()  # while its row writes
    assert (generator.stats.busy, generator.stats.waiting) == (7, 1)
    generator.gate.set()
    whole = written(second)
    assert [written(generation) for generation in running[1:]] == [whole] * 7
    assert written(running[0])[2] == Finished("cancelled", len(request[0].ids), 0)
    assert generator.stats.outcomes == {whole[2].reason: 8, "cancelled": 2}


def test_closing_drains_and_refuses(gated):
    generator, request = gated
    running = full(generator, request)
    closing = threading.Thread(target=generator.close)
    closing.start()
    until(lambda: generator._closing)
    with pytest.raises(Closed, match="shutting down"):
        generator.submit(*request)
    with pytest.raises(Closed, match="shutting down"):
        generator.check_room()
    generator.gate.set()
    assert {written(generation)[2].reason for generation in running} <= {"stop", "length"}
    closing.join()
    assert not generator._thread.is_alive()


def test_closing_takes_no_longer_than_its_timeout(gated):
    generator, request = gated
    running = full(generator, request)
    closing = threading.Thread(target=generator.close, kwargs={"timeout": 0.05})
    closing.start()
    assert [written(generation)[2].reason for generation in running] == ["cancelled"] * 10
    generator.gate.set()
    closing.join()
    assert not generator._thread.is_alive()


def test_an_error_of_the_devices_ends_what_runs_and_no_more(gated):
    generator, request = gated
    running = full(generator, request)
    wait = generator._batches.write

    def fail(jobs):
        wait(jobs)
        generator._batches.write = wait
        raise RuntimeError("no memory")

    until(lambda: generator.stats.busy == 8)
    running[0].cancel()
    generator._batches.write = fail  # of the next visit
    generator.gate.set()
    ends = [written(generation) for generation in running]
    assert [end.reason for _, _, end in ends[:8]] == ["cancelled", *["error"] * 7]
    assert "no memory" in ends[1][2].message
    assert ends[8] == ends[9] == written(*generator.submit(*request))
    assert ends[9][2].reason in ("stop", "length")


def test_a_held_row_goes_on_where_it_was(generator, reader, policy):
    """Two turns with a text between them are one reading of it all."""
    prompt = reader.prompt([chat("Which way do the stripes of the red site run?")])
    between = policy.rows.encode(" site")
    (held,) = generator.submit(prompt, ReplyConfig(max_tokens=3), hold=True)
    _, first, end = written(held)
    assert end.reason == "length"
    held.go_on(Segment(between), 4)
    _, second, end = written(held)
    assert (end.prompt_tokens, end.completion_tokens) == (len(prompt.ids) + len(between), 3 + len(second))
    whole = Segment([*prompt.ids, *first, *between])
    assert written(*generator.submit(whole, ReplyConfig(max_tokens=4)))[1] == second
    held.go_on(Segment(between), 4, again=True)
    _, third, _ = written(held)
    again = Segment([*prompt.ids, *first, *between, *between])
    assert written(*generator.submit(again, ReplyConfig(max_tokens=4)))[1] == third
    assert generator.stats.busy == 1
    held.cancel()
    assert generator.stats.busy == 0


@pytest.mark.parametrize("past", [6, 8])
def test_the_last_slots_of_a_row_hold_what_they_should(past):
    """Four are put after those that are used; where that reaches beyond the row, the first of them are put all the same."""
    new = np.arange(1.0, 13).reshape(1, 3, 1, 4, 1).astype(np.float32)
    places = Places(np.array([1, 0, 2], np.int32), np.array([2, past, 0], np.int32))  # there is no row 2
    put = np.asarray(_put_keys(jnp.zeros((1, 2, 1, 10, 1)), new, places, past))[0, :, 0, :, 0]
    expected = np.zeros((2, 14))
    expected[1, 2:6], expected[0, past : past + 4] = (1, 2, 3, 4), (5, 6, 7, 8)
    np.testing.assert_array_equal(put, expected[:, :10])


def test_many_clients_lose_and_mix_nothing(generator, reader):
    """64 threads, more than rows; each gets its own reply."""
    rng = np.random.default_rng(2)
    requests = [random_request(reader, rng) for _ in range(64)]
    expected = [written(*generator.submit(*request)) for request in requests]
    replies: list = [None] * 64

    def client(number: int) -> None:
        time.sleep(0.001 * (number % 7))
        replies[number] = written(*generator.submit(*requests[number]))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert replies == expected
