"""What an evaluation states, against counting by hand; broken images, full disks and parts of folders."""

import json
import shutil
import types
from pathlib import Path

import pytest

from tests.episodes import made_episode
from zoomearth_jax.cli import main
from zoomearth_jax.configs.episode import EpisodeConfig
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.data_pipeline.images.boxes import Box, Frame, crop_window
from zoomearth_jax.data_pipeline.questions.folders import read_questions
from zoomearth_jax.data_pipeline.questions.question import Look, Question
from zoomearth_jax.errors import UserError
from zoomearth_jax.evaluation.summary import summarize
from zoomearth_jax.rl.records import sample_record
from zoomearth_jax.verbs.evaluate import EvaluateConfig, _open_questions, evaluate
from zoomearth_jax.verbs.make_scenes import ScenesConfig, write_scenes

IMAGE, EPISODE = Frame(1000, 1000), EpisodeConfig(min_window_px=100)


def question(answer, box=None):
    return Question(
        types.SimpleNamespace(frame=IMAGE), "?", answer, "object" if box else "global", (Look(box),) if box else ()
    )


def episode(answer, box=None):
    window = box and crop_window(box, EPISODE.min_window_px)
    return made_episode("", "" if box else None, box, "" if box else "absent", window, answer)


QUESTIONS = [question("3"), question("ship", Box(0, 0, 20, 20, IMAGE)), question("urban"), question("yes")]
EPISODES = [episode("III"), episode("ships", Box(10, 0, 30, 20, IMAGE)), episode("rural"), episode("Yes.")]


@pytest.mark.parametrize(
    ("match", "correct"),
    [
        ("exact", [False, False, False, True]),
        ("wordnet", [True, True, False, True]),  # urban and rural are 1/3 alike
        ("typed", [False, True, False, True]),  # III is a synonym of 3, but no number here
    ],
)
def test_answers_are_correct_by_the_match(match, correct):
    summary = summarize(QUESTIONS, EPISODES, EPISODE, match)
    assert summary["accuracy"] == sum(correct) / 4
    assert summary["accuracy_by_level"] == {"global": (correct[0] + correct[2] + correct[3]) / 3, "object": correct[1]}
    records = [sample_record(q, e, match=match) for q, e in zip(QUESTIONS, EPISODES, strict=True)]
    assert [record["correct"] for record in records] == correct


def test_iou_of_boxes_and_of_windows():
    summary = summarize(QUESTIONS, EPISODES, EPISODE)
    assert summary["apo_iou"] == pytest.approx(1 / 3)
    assert summary["apo_iou_window"] == 1.0  # both boxes are read in the corner's window
    assert summary["zoom_rate"] == 0.25


def test_an_unknown_match_is_one_line(capsys):
    assert main(["evaluate", "--match", "wordnett"]) == 2
    error = capsys.readouterr().err
    assert "wordnett" in error
    assert error.count("\n") == 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Questions about three images, two or more of each."""
    return write_scenes(ScenesConfig(out=tmp_path_factory.mktemp("scenes"), count=3, side=200, format="png"))


def run(data, **settings):
    """An evaluation sampled at T = 1, in batches of three."""
    how = {"sampling": SamplingConfig(temperature=1.0), "masked": False, "batch_size": 3} | settings
    return evaluate(EvaluateConfig(data=(str(data),), **how))


def truncated(folder, to, *numbers):
    """A copy of the folder in which some images break off."""
    shutil.copytree(folder, to)
    for number in numbers:
        file = sorted(to.glob("*.png"))[number]
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return to


def records(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_broken_image_is_named_counted_and_changes_nothing_else(folder, tmp_path, capsys):
    (tmp_path / "s.jsonl").write_text("of an earlier evaluation\n" * 99)
    total = len(read_questions(folder))
    whole = run(folder, samples=tmp_path / "s.jsonl")["shown"]
    assert (whole["questions"], whole["of"], whole["unreadable"]) == (total, total, 0)
    assert " of " not in capsys.readouterr().out
    broken = truncated(folder, tmp_path / "broken", 1)
    name = sorted(broken.glob("*.png"))[1].name
    results = run(broken, samples=tmp_path / "b.jsonl", masked=True)
    left = [q.image.path.name == name for q in read_questions(broken)]
    for summary in results.values():
        assert (summary["questions"], summary["of"]) == (total - sum(left), total)
        assert summary["unreadable"] == sum(left) > 1
    said = capsys.readouterr()
    assert said.err.count(name) == said.err.count("\n") == 1
    assert f"{total - sum(left)} of {total}" in said.out
    # every other question has the same seed: the same text at T = 1
    kept = [record for record, gone in zip(records(tmp_path / "s.jsonl"), left, strict=True) if not gone]
    assert records(tmp_path / "b.jsonl") == kept


def test_strict_stops_at_a_broken_image_and_keeps_what_was_played(folder, tmp_path):
    broken = truncated(folder, tmp_path / "broken", 2)
    questions = read_questions(broken)
    last = next(i for i, q in enumerate(questions) if q.image.path.name == sorted(broken.glob("*.png"))[2].name)
    with pytest.raises(UserError, match=r"\.png: broken image data"):
        run(broken, strict=True, samples=tmp_path / "s.jsonl")
    assert len(records(tmp_path / "s.jsonl")) == last // 3 * 3 > 0


def test_only_broken_images_are_one_line(folder, tmp_path, capsys):
    broken = truncated(folder, tmp_path / "broken", *range(3))
    assert main(["evaluate", "--data", str(broken), "--batch-size", "6"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "none of the" in error
    assert "scene_0_0000.png" in error


def test_all_questions_of_a_folder_and_1024_scenes_by_default(folder):
    total = len(read_questions(folder))
    for data, questions, want in (
        ((str(folder),), None, (total, total)),
        (("scenes",), None, (1024, 1024)),
        (("scenes",), 7, (7, 7)),
        (("scenes", str(folder)), None, (1024 + total, 1024 + total)),
        (("scenes", str(folder)), 2, (4, 2 + total)),
    ):
        asked, of = _open_questions(EvaluateConfig(data=data, questions=questions))
        assert (len(asked), of) == want


@pytest.mark.parametrize("place", ["folder", "file/s.jsonl", "/dev/full", "n" * 300, "/proc/s.jsonl"])
def test_samples_are_tried_before_anything_runs(place, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    assert main(["evaluate", "--model", "nothing-there", "--samples", place]) == 2
    error = capsys.readouterr().err
    assert place in error
    assert "nothing-there" not in error
    assert error.count("\n") == 1


def test_what_was_there_stays_until_the_first_batch(tmp_path, capsys):
    (tmp_path / "old").write_text("kept")
    for name in ("old", "new"):
        assert main(["evaluate", "--model", "nothing-there", "--samples", str(tmp_path / "a" / ".." / name)]) == 2
    assert (tmp_path / "old").read_text() == "kept"
    assert not (tmp_path / "new").exists()


def test_a_disk_that_fills_up_does_not_end_the_evaluation(folder, capsys, monkeypatch):
    """Of a part of the folder, which says of how many."""
    monkeypatch.setattr("zoomearth_jax.verbs.evaluate.check_writable", lambda path: None)
    with pytest.raises(UserError, match="/dev/full: No space left on device; it holds 0 questions"):
        run(folder, questions=3, samples=Path("/dev/full"), json=True)
    summary = json.loads(capsys.readouterr().out)["shown"]
    assert (summary["questions"], summary["of"]) == (3, len(read_questions(folder)))
