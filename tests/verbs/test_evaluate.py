"""What an evaluation states, against counting by hand; broken images, full disks and parts of folders."""

import json
import shutil
import types

import pytest
import rasterio

from tests.episodes import made_episode
from tests.evaluation.official_files import mme_row, write_mme
from zoomearth_jax.cli import main
from zoomearth_jax.configs.episode import EpisodeConfig
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.data_pipeline.images.boxes import Box, Frame, crop_window
from zoomearth_jax.data_pipeline.questions.folders import read_questions
from zoomearth_jax.data_pipeline.questions.question import Look, Question
from zoomearth_jax.errors import UserError
from zoomearth_jax.evaluation import record_store
from zoomearth_jax.evaluation.summary import summarize
from zoomearth_jax.files import Lock
from zoomearth_jax.rl.records import sample_record
from zoomearth_jax.verbs import evaluate as verb
from zoomearth_jax.verbs.evaluate import EvaluateConfig, _open, evaluate
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
    assert summary["zoom_rate"] == summary["looks"] == 0.25
    assert summary["looks_missing"] == summary["looks_spare"] == 0


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
    how = {"sampling": SamplingConfig(temperature=1.0), "crops": ("shown",), "batch_size": 3} | settings
    return evaluate(EvaluateConfig(data=(str(data),), **how))


def truncated(folder, to, *numbers):
    """A copy of the folder in which some images break off."""
    shutil.copytree(folder, to)
    for number in numbers:
        file = sorted(to.glob("*.png"))[number]
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return to


def records(out):
    """The records of an evaluation without what differs from time to time."""
    lines = (out / "records.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]


def test_a_broken_image_is_named_counted_and_changes_nothing_else(folder, tmp_path, capsys):
    total = len(read_questions(folder))
    whole = run(folder, out=tmp_path / "whole")["counts"]
    assert (whole["scored"], whole["total"], whole["unreadable"]) == (total, total, 0)
    assert " of " not in capsys.readouterr().out.splitlines()[0]
    broken = truncated(folder, tmp_path / "images", 1)
    name = sorted(broken.glob("*.png"))[1].name
    results = run(broken, out=tmp_path / "broken", crops=("shown", "masked"))
    left = [q.image.path.name == name for q in read_questions(broken)]
    assert (results["counts"]["scored"], results["counts"]["total"]) == (total - sum(left), total)
    for one in results["runs"].values():
        assert (one["summary"]["questions"], one["summary"]["unreadable"]) == (total - sum(left), sum(left))
        assert sum(left) > 1
    said = capsys.readouterr()
    assert said.err.count(f"{name}: broken image data") == said.err.count("left out")
    assert f"questions: {total - sum(left)} of {total} questions, {sum(left)} unreadable" in said.out
    # every other question has the same seed: the same text at T = 1
    kept = [record for record, gone in zip(records(tmp_path / "whole"), left, strict=True) if not gone]
    assert [record for record in records(tmp_path / "broken") if not record["fault"]] == kept
    assert "</html>" in (tmp_path / "broken" / "report.html").read_text()


@pytest.mark.slow
def test_images_that_were_mended_are_tried_again(folder, tmp_path):
    broken = truncated(folder, tmp_path / "images", 1)
    assert run(broken, out=tmp_path / "out")["counts"]["unreadable"] > 0
    shutil.copytree(folder, broken, dirs_exist_ok=True)
    assert run(broken, out=tmp_path / "out", resume=True)["counts"]["unreadable"] == 0
    run(folder, out=tmp_path / "whole")
    assert records(tmp_path / "out") == records(tmp_path / "whole")


def test_strict_stops_at_a_broken_image_and_keeps_what_was_played(folder, tmp_path):
    broken = truncated(folder, tmp_path / "broken", 2)
    questions = read_questions(broken)
    last = next(i for i, q in enumerate(questions) if q.image.path.name == sorted(broken.glob("*.png"))[2].name)
    with pytest.raises(UserError, match=r"\.png: broken image data"):
        run(broken, strict=True, out=tmp_path / "out")
    assert len(records(tmp_path / "out")) == last // 3 * 3 > 0


def test_only_broken_images_are_one_line(folder, tmp_path, capsys):
    broken = truncated(folder, tmp_path / "broken", *range(3))
    assert main(["evaluate", "--data", str(broken), "--batch-size", "3"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "none of the" in error
    assert "scene_0_0000.png" in error


def test_boxes_of_images_that_lie_somewhere_are_written_for_the_map(folder, tmp_path, capsys):
    placed = shutil.copytree(folder, tmp_path / "images")
    args = ["evaluate", "--data", str(placed), "--crops", "shown", "--batch-size", "3", "--limit", "6"]
    args += ["--geojson", str(tmp_path / "o.geojson")]
    assert main(args) == 2
    assert "none of the images has a georeference with a CRS, which --geojson needs" in capsys.readouterr().err
    first = sorted(placed.glob("*.png"))[0]
    first.with_suffix(".pgw").write_text("0.5\n0\n0\n-0.5\n500000.25\n5650000\n")
    first.with_suffix(".prj").write_text(rasterio.crs.CRS.from_epsg(32633).to_wkt())
    assert main([*args, "--out", str(tmp_path / "out")]) == 0
    own = json.loads((tmp_path / "o.EPSG_32633.geojson").read_text())["features"]
    assert len(own) == len(json.loads((tmp_path / "o.geojson").read_text())["features"])
    expected = [
        (record["id"], kind, record[field])
        for record in records(tmp_path / "out")
        if record["image"] == first.name
        for field, kind in (("box", "box"), ("window", "window"), ("reference_box", "reference"))
        if record[field]
    ]
    assert [(f["properties"]["id"], f["properties"]["kind"], f["properties"]["px"]) for f in own] == expected
    for feature, (_, _, (x1, y1, x2, y2)) in zip(own, expected, strict=True):
        x, y = zip(*feature["geometry"]["coordinates"][0], strict=True)
        assert (min(x), max(x)) == pytest.approx((500_000 + x1 / 2, 500_000 + x2 / 2), abs=1e-6)
        assert (min(y), max(y)) == pytest.approx((5_650_000.25 - y2 / 2, 5_650_000.25 - y1 / 2), abs=1e-6)


def test_a_benchmark_is_played_into_its_folder_and_refused_rows_are_counted(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [mme_row(0), mme_row(1, **{"Ground truth": "F"}), mme_row(2, Image="nowhere.png"), mme_row(3)]
    write_mme(tmp_path / "MME", rows)
    args = ["evaluate", "--benchmark", "mme-realworld-rs", "--data", "MME"]
    assert main([*args, "--strict"]) == 2
    assert "2 rows can't be asked" in capsys.readouterr().err
    assert main(args) == 0
    said = capsys.readouterr()
    assert said.err.count("; left out\n") == 2
    assert "MME-RealWorld, Remote Sensing: 2 of 4 questions" in said.out
    out = tmp_path / "runs" / "eval-mme-realworld-rs"
    results = json.loads((out / "results.json").read_text())
    assert results["counts"] == {"total": 4, "scored": 2, "limit": None, "unreadable": 0, "refused_rows": 2}
    assert list(results["runs"]) == ["shown"]
    assert [record["id"][-4:] for record in records(out)] == ["0000", "0003"]


def test_all_questions_of_a_folder_and_1024_scenes_by_default(folder):
    total = len(read_questions(folder))
    for data, limit, want in (
        ((str(folder),), None, (total, total)),
        ((), None, (1024, 1024)),
        (("scenes",), 7, (7, 7)),
        (("scenes", str(folder)), None, (1024 + total, 1024 + total)),
        (("scenes", str(folder)), 2, (4, 2 + total)),
        ((str(folder), str(folder)), 2, (4, 2 * total)),
    ):
        _, opened, chosen = _open(EvaluateConfig(data=data, limit=limit))
        assert (len(chosen), opened.total) == want
        assert len({item.id for item in opened.items}) == len(opened.items)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--benchmark", "lrs-gr"], "did you mean 'lrs-gro'?"),
        (["--benchmark", "mme-realworld-rs"], "give the official file or its folder by --data; MME_RealWorld.json and"),
        (["--crops", "maskd"], "did you mean 'masked'?"),
        (["--crops", "shown", "shown"], "names one twice"),
        (["--shard", "0/4"], "write the part and the number of parts, such as 1/4"),
        (["--shard", "5/4"], "such as 1/4"),
        (["--limit", "2", "--shard", "3/4"], "has none of 2 questions"),
        (["--resume"], "resume needs --out"),
        (["--out", "new", "--resume", "--overwrite"], "choose one"),
        (["--benchmark", "xlrs-bench", "--data", ".", "--match", "exact"], "has a rule of its own"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_settings_that_make_no_sense_are_one_line(args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *args]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["file", "file/out", "n" * 300, "/proc/out", "/dev/full"])
def test_the_folder_is_tried_before_anything_runs(place, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(verb, "load_model", None)
    (tmp_path / "file").write_text("kept")
    assert main(["evaluate", "--out", place]) == 2
    error = capsys.readouterr().err
    assert place in error
    assert error.count("\n") == 1
    assert (tmp_path / "file").read_text() == "kept"


def test_what_was_there_stays_until_the_model_is_loaded(tmp_path, capsys):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "records.jsonl").write_text("kept")
    for name in ("old", "new"):
        how = ["--layout.prompt-len", "17", "--overwrite"]
        assert main(["evaluate", *how, "--out", str(tmp_path / name)]) == 2
    assert (tmp_path / "old" / "records.jsonl").read_text() == "kept"
    assert not (tmp_path / "new").exists()


def test_two_evaluations_do_not_share_a_folder(tmp_path):
    with Lock(tmp_path, ""), pytest.raises(UserError, match="another evaluation is at work"):
        run("scenes", out=tmp_path)


@pytest.mark.slow
def test_a_disk_that_fills_up_does_not_end_the_evaluation(folder, tmp_path, capsys, monkeypatch):
    """Of a part of the folder, which says of how many. What could be written can be gone on with."""
    append, counts = record_store._append, []

    def full(path, data):
        counts.append(len(data))
        if len(counts) == 2:
            raise OSError(28, "No space left on device")
        append(path, data)

    monkeypatch.setattr(record_store, "_append", full)
    how = {"limit": 5, "out": tmp_path / "out", "json": True}
    with pytest.raises(
        UserError, match=r"records\.jsonl: No space left on device; it holds 3 questions, the rest is lost"
    ):
        run(folder, **how)
    results = json.loads(capsys.readouterr().out)
    assert (results["counts"]["scored"], results["counts"]["total"]) == (5, len(read_questions(folder)))
    assert len(records(tmp_path / "out")) == 3
    assert run(folder, resume=True, **how)["runs"]["shown"]["summary"] == results["runs"]["shown"]["summary"]


def test_results_state_where_they_come_from(folder, tmp_path):
    results = run(folder, limit=3, out=tmp_path)
    known = "benchmark title config config_hash versions commit seed hardware date counts runs published"
    assert " ".join(results) == known
    assert results == json.loads((tmp_path / "results.json").read_text())
    assert results["config"]["sampling"]["temperature"] == 1.0
    assert {"zoomearth-jax", "jax"} <= set(results["versions"])
    assert set(results["hardware"]) == {"platform", "device", "devices", "cores"}
    (one,) = results["runs"].values()
    own = records(tmp_path)
    assert one["tokens_per_sample"] == sum(record["tokens"] for record in own) / 3
    assert one["visual_tokens_per_sample"] == sum(record["visual_tokens"] for record in own) / 3 > 0
    assert one["seconds_per_sample"] > 0
