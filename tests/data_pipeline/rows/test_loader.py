"""The loader's order, its resume, its share for each host, and what happens when a question or a worker fails."""

import collections
import dataclasses
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.data_pipeline.rows.in_worker import RowsThenModules, nap
from zoomearth_jax.configs.io import from_dict, to_dict
from zoomearth_jax.configs.training import GRPOConfig
from zoomearth_jax.data_pipeline.images.boxes import Box, Frame
from zoomearth_jax.data_pipeline.images.sources import whole
from zoomearth_jax.data_pipeline.questions.mixture import SceneQuestions, Source, open_sources
from zoomearth_jax.data_pipeline.questions.procedural import scene_questions
from zoomearth_jax.data_pipeline.questions.question import Look
from zoomearth_jax.data_pipeline.rows.loader import Loader, order
from zoomearth_jax.errors import UserError
from zoomearth_jax.runs.start import look_ahead
from zoomearth_jax.verbs.make_scenes import ScenesConfig, write_scenes

STEPS = 12
FINITE = Source("finite", scene_questions("sft", 0, 0, 20))
ENDLESS = Source("endless", SceneQuestions("grpo", 0, 0.25))


def texts(questions):
    """A `make` that is quick."""
    return [(q.text, q.answer) for q in questions]


def open_loader(sources=(FINITE,), make=texts, **settings):
    return Loader(list(sources), make, **{"batch_size": 4, "seed": 3, **settings})


def leaves(tree):
    return [leaf for part in tree for leaf in leaves(part)] if isinstance(tree, tuple) else [tree]


@pytest.fixture(scope="module")
def rows_of_run(nano):
    """All batches of a run over two sources, as fine-tuning gets them."""
    with open_loader((FINITE, ENDLESS), nano.rows.supervised, mix=(1, 3)) as loader:
        return list(loader.batches(0, STEPS))


@pytest.mark.parametrize("workers", [0, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_resume_is_bit_exact_at_random_steps(workers, nano, rows_of_run):
    steps = np.random.default_rng().choice(STEPS, 5, replace=False)
    with open_loader((FINITE, ENDLESS), nano.rows.supervised, mix=(1, 3), workers=workers) as loader:
        for start in map(int, steps):
            for expected, batch in zip(rows_of_run[start:], loader.batches(start, STEPS), strict=True):
                assert all(
                    np.array_equal(a, b) and a.dtype == b.dtype
                    for a, b in zip(leaves(expected), leaves(batch), strict=True)
                )


def test_an_epoch_is_complete_and_the_next_one_in_another_order():
    places = order([FINITE], 0)
    epochs = [[places[20 * e + i].index for i in range(20)] for e in range(3)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    other = order([FINITE], 1)  # grain alone would start seed 1 with the second epoch of seed 0
    assert [other[i].index for i in range(20)] not in epochs


def test_two_hosts_are_disjoint_and_complete_and_one_goes_on_with_the_same_batches():
    whole = open_loader()
    halves = [open_loader(process=(index, 2)) for index in (0, 1)]
    for step in range(15):
        shares = [half.places(step) for half in halves]
        assert [len(share) for share in shares] == [2, 2]
        assert shares[0] + shares[1] == whole.places(step)
    epoch = [place for step in range(5) for half in halves for place in half.places(step)]
    assert len(set(epoch)) == 20
    assert [texts(half.questions(1)) for half in halves] == [next(half.batches(1, 2)) for half in halves]


def test_shares_of_a_mix_hold_in_every_stretch():
    places = order([FINITE, ENDLESS], 0, (0.3, 0.7))
    drawn = [places[i] for i in range(400)]
    for start in range(0, 400, 50):
        count = collections.Counter(place.source for place in drawn[start : start + 50])
        assert abs(count[0] - 15) <= 1
    endless = [p.index for p in drawn if p.source == 1]
    assert endless == list(range(len(endless)))  # nothing comes twice
    finite = [p.index for p in drawn if p.source == 0]
    assert sorted(finite[:20]) == sorted(finite[20:40]) == list(range(20))


def test_few_batches_are_made_ahead():
    made = []
    with open_loader(make=lambda questions: made.append(1)) as loader:
        batches = loader.batches(0, 1000)
        for taken in range(1, 6):
            next(batches)
            time.sleep(0.05)
            assert len(made) <= taken + 1


@pytest.mark.parametrize(("budget", "least", "most"), [(1e9, 20, 24), (5 * 77_000, 44, 56)])
def test_kept_rows_are_made_once_and_change_nothing(budget, least, most, nano):
    """A row has 77 kB. Of a set over the budget, the two batches that reached it are kept and the rest made anew. Two
    batches are under way at once: one more may come to be kept, or share a row with the other."""
    made = []

    def make(questions):
        made.extend(questions)
        return nano.rows.supervised(questions)

    with open_loader(make=make, keep_bytes=budget) as loader, open_loader(make=nano.rows.supervised) as plain:
        for batch, expected in zip(loader.batches(0, 20), plain.batches(0, 20), strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(leaves(batch), leaves(expected), strict=True))
    assert least <= len(made) <= most  # of 80 rows in four epochs


def test_rows_of_several_pictures_are_kept_whole(nano):
    """Arrays of pictures have as many entries a row as the layout has pictures."""
    rows = nano.rows.replaced(turn_lens=(20, 20, 12))
    half = Box(0, 0, 1024, 1024, Frame(2048, 2048))
    chains = [
        dataclasses.replace(q, looks=(Look(half, "half"), *q.looks)[i % 2 :]) for i, q in enumerate(FINITE.questions)
    ]
    source = Source("chains", chains)
    with (
        open_loader((source,), rows.supervised, keep_bytes=1e9) as kept,
        open_loader((source,), rows.supervised) as plain,
    ):
        for batch, expected in zip(kept.batches(0, 8), plain.batches(0, 8), strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(leaves(batch), leaves(expected), strict=True))


def test_look_ahead_prepares_the_next_batch_while_the_last_is_in_use():
    prepared = []
    taken = look_ahead(iter(range(5)), lambda batch: prepared.append(batch) or batch * 10)
    assert next(taken) == 0
    time.sleep(0.2)
    assert prepared == [0, 1]  # and no further
    assert list(taken) == [10, 20, 30, 40]


def test_workers_make_rows_without_jax(nano):
    with open_loader(make=RowsThenModules(nano.rows), workers=1) as loader:
        modules, process = next(loader.batches(0, 1))
    assert process != os.getpid()
    assert modules == {"jax": False, "grain": False, "transformers": True}


def test_a_killed_worker_is_an_error_at_once_and_nothing_hangs():
    with open_loader(make=nap, workers=2) as loader:
        batches = loader.batches(0, 10_000)
        next(batches)
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        began = time.monotonic()
        with ThreadPoolExecutor(1) as thread, pytest.raises(UserError, match="a data worker died"):
            thread.submit(collections.deque, batches).result(timeout=10)
    assert time.monotonic() - began < 10
    assert not multiprocessing.active_children()


def test_workers_end_with_a_killed_main_process(tmp_path):
    script = tmp_path / "main.py"
    script.write_text(
        "import multiprocessing, time\n"
        "from zoomearth_jax.data_pipeline.questions.mixture import SceneQuestions, Source\n"
        "from zoomearth_jax.data_pipeline.rows.workers import BatchMaker, Place, Pool\n"
        "if __name__ == '__main__':\n"
        "    pool = Pool(BatchMaker([Source('s', SceneQuestions('sft', 0, 0.0))], len), 1)\n"
        "    pool.submit([Place(0, 0)]).result()\n"
        "    print(multiprocessing.active_children()[0].pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    main = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    worker = int(main.stdout.readline())
    os.kill(worker, 0)  # it runs
    main.kill()
    main.wait()
    main.stdout.close()
    for _ in range(100):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker outlived its main process")


class _Broken:
    """A procedural image that can't be read."""

    def __init__(self, scene):
        self.scene, self.frame = scene, scene.frame

    def window(self, box, size, exact=False):
        raise UserError("scene.tif: broken image data")


def with_broken(numbers):
    """FINITE with broken images in the questions of those numbers."""
    return Source(
        "finite",
        [dataclasses.replace(q, image=_Broken(q.image)) if i in numbers else q for i, q in enumerate(FINITE.questions)],
    )


def look(questions):
    """A `make` that looks at every image."""
    for question in questions:
        question.image.window(whole(question.image), Frame(8, 8))
    return texts(questions)


def filled(numbers, step, size=4):
    """The rule, from the order alone: a broken place is taken by the next whole one."""
    places = order([FINITE], 3)
    taken = []
    for position in range(step * size, (step + 1) * size):
        while places[position].index in numbers:
            position += 1
        taken.append(places[position])
    return taken


@pytest.mark.parametrize(("workers", "keep_bytes"), [(0, 0), pytest.param(2, 0, marks=pytest.mark.slow)])
def test_a_broken_image_s_place_is_taken_by_the_next(workers, keep_bytes, capsys):
    """Whatever is known already: from the start, from the middle, and in two hosts' halves."""
    broken = {2, 3, 11}
    source = with_broken(broken)
    expected = [filled(broken, step) for step in range(12)]
    assert any(len(set(places)) < 4 for places in expected)
    with open_loader((source,), look, workers=workers) as loader:
        for start in (0, 7):
            for step, batch in enumerate(loader.batches(start, 12), start):
                questions = loader.questions(step)
                assert texts(questions) == batch == texts([source.questions[p.index] for p in expected[step]])
                own = order([FINITE], 3)
                assert loader.replaced(step) == sum(own[4 * step + i].index in broken for i in range(4))
    said = capsys.readouterr().err.splitlines()
    line = "zoomearth: warning: finite question {}: scene.tif: broken image data; the next question takes its place"
    named = [line.format(i + 1) for i in broken]
    assert sorted(said[:-1]) == sorted(named)
    assert said[-1] == "zoomearth: warning: 3 questions were left out, their images can't be read (see above)"
    halves = [open_loader((source,), look, process=(index, 2)) for index in (0, 1)]
    for step, both in enumerate(zip(*(half.batches(0, 12) for half in halves), strict=True)):
        assert [*both[0], *both[1]] == texts([source.questions[p.index] for p in expected[step]])


def test_rows_that_are_kept_have_the_same_substitutes(nano):
    source = with_broken({2, 3, 11})
    with (
        open_loader((source,), nano.rows.supervised, keep_bytes=1e9) as kept,
        open_loader((source,), nano.rows.supervised) as plain,
    ):
        for a, b in zip(kept.batches(0, 12), plain.batches(0, 12), strict=True):
            assert all(np.array_equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_strict_or_a_whole_broken_batch_ends_the_run(workers, nano, tmp_path):
    folder = write_scenes(ScenesConfig(out=tmp_path, count=2, side=300, format="png"))
    source = open_sources([str(folder)], "sft", seed=0, global_share=0)
    for question in source[0].questions:
        image = question.image.path
        image.write_bytes(image.read_bytes()[:2000])
    for strict, message in ((True, ""), (False, "; nor can the 3 questions before it be read")):
        with (
            open_loader(source, nano.rows.prompts, workers=workers, strict=strict) as loader,
            pytest.raises(
                UserError, match=rf"^{folder} question \d+: {folder}/scene_0_.*: broken image data.*{message}$"
            ),
        ):
            list(loader.batches(0, 10))


def test_a_question_that_doesn_t_fit_is_never_skipped(nano):
    long = dataclasses.replace(FINITE.questions[5], text="why? " * 500)
    source = Source("finite", [*FINITE.questions[:5], long, *with_broken({6}).questions[6:]])
    with (
        open_loader((source,), nano.rows.supervised) as loader,
        pytest.raises(UserError, match=r"^finite question 6: question 'why.* takes .* tokens"),
    ):
        list(loader.batches(0, 10))


def test_bad_settings_are_one_line():
    with pytest.raises(UserError, match="a batch of 4 questions doesn't divide over 3 hosts"):
        open_loader(process=(0, 3))
    for mix in [(1,), (1, 0), (1, -1), (1, float("nan"))]:
        with pytest.raises(UserError, match="mix: give 2 positive shares"):
            open_loader((FINITE, ENDLESS), mix=mix)
    for data in ((), "scenes"):
        with pytest.raises(UserError, match="data: give a sequence of folders"):
            open_sources(data, "sft", seed=0, global_share=0)


def test_sources_pickle_small():
    assert len(pickle.dumps(ENDLESS)) < 1000
    copy = pickle.loads(pickle.dumps(FINITE))
    assert copy.questions == FINITE.questions


def test_data_settings_survive_yaml():
    config = GRPOConfig(data=("scenes", "folder"), mix=(0.5, 1))
    assert from_dict(GRPOConfig, {**to_dict(config), "data": ["scenes", "folder"], "mix": [0.5, 1]}, "x") == config
    assert from_dict(GRPOConfig, {"data": "scenes"}, "x").data == ("scenes",)


def test_refills_are_further_questions_that_follow_from_the_step():
    """Of no stretch of another step or refill, the same on two hosts and for a loader that begins later; nothing else changes."""
    loader, plain = open_loader((ENDLESS,), refills=2), open_loader((ENDLESS,))
    batches = loader.batches(0, 4)
    taken = []
    for step in range(4):
        assert next(batches) == texts(plain.questions(step))
        taken += loader.taken(step)
        for refill in (1, 2):
            assert loader.refill(step, refill) == texts(loader.questions(step, refill))
            taken += loader.taken(step, refill)
    assert len(set(taken)) == 4 * 3 * 4
    halves = [open_loader((ENDLESS,), refills=2, process=(index, 2)) for index in (0, 1)]
    assert [place for half in halves for place in half.places(3, 2)] == taken[-4:] == loader.places(3, 2)
    mixed = open_loader((FINITE, ENDLESS), mix=(1, 3), refills=1)
    assert sum(place.source for place in mixed.places(5, 1)) == 3


def test_questions_that_are_passed_over_make_room_for_others():
    """A step's questions are distinct, on however many hosts; where too few are left, those left out fill its batch."""
    easy = set(range(12))

    def passed_over(place, step):
        return step >= 5 and place.index in easy

    loader, plain = open_loader(passed_over=passed_over, refills=1), open_loader()
    halves = [open_loader(passed_over=passed_over, refills=1, process=(index, 2)) for index in (0, 1)]
    for step in range(15):
        places, first = loader.places(step), plain.places(step)
        assert places == [place for half in halves for place in half.places(step)]
        assert loader.left_out(step) == sum(passed_over(place, step) for place in first)
        assert [p for p in first if not passed_over(p, step)] == places[: 4 - loader.left_out(step)]
        assert not any(passed_over(place, step) for place in places)
        both = places + loader.places(step, 1)
        assert len(set(both)) == 8  # of 8 left or 20 in all
        assert step < 5 or {place.index for place in both} == set(range(12, 20))
    easy |= set(range(12, 18))
    assert len(set(loader.places(7))) == 4
    assert {18, 19} <= {place.index for place in loader.places(7)}
