"""Dumps of rollouts: what a line has, what a full disk does, what a resumed run replaces; and the page of a run."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from tests.reports.dumps import dumped, lines, played, questions
from tests.reports.test_episodes import HOSTILE, Elements, embedded, pictures
from zoomearth_jax import files
from zoomearth_jax.cli import main
from zoomearth_jax.reports import rollouts
from zoomearth_jax.reports.rollout_page import write_rollout_page
from zoomearth_jax.reports.rollouts import RolloutDump
from zoomearth_jax.reports.thumbnails import read_thumbnails


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with the dumps of two steps of two groups of three episodes."""
    out = tmp_path_factory.mktemp("run")
    dumped(out, (5, 10))
    return out


def names(out):
    return sorted(path.name for path in (out / "rollouts").iterdir())


def test_a_line_has_what_an_episode_did_and_earned(run):
    assert names(run) == [f"{kind}_{step:06d}_0.jsonl" for kind in ("step", "thumbnails") for step in (5, 10)]
    found = lines(run, "step_000010_0.jsonl")
    assert [(line["id"], line["step"], line["group"], line["sample"]) for line in found] == [
        (f"10-{group}-{sample}", 10, group, sample) for group in (0, 1) for sample in (0, 1, 2)
    ]
    first, second, third = found[:3]
    assert first["turns"][0] == {"text": "<think>look</think>", "box": [200, 0, 400, 200], "window": [200, 0, 400, 200]}
    assert (first["reference_looks"], first["width"], first["height"]) == ([[200, 0, 400, 200]], 400, 200)
    assert (first["answer"], first["correct"], first["advantage"], first["iou"]) == ("yes", True, 1, 1)
    assert (first["rewards"], first["turn_tokens"]) == ({"total": 2, "iou": 0, "own": 0.5}, [20, 10])
    assert (second["correct"], second["turns"][0]["window"]) == (False, [100, 0, 300, 200])
    assert (third["answer"], third["truncated"], third["iou"]) == (None, True, None)
    assert (third["rewards"]["own"], third["turn_tokens"], len(third["turns"])) == (None, [10, None], 1)


def test_a_group_has_its_overview_once(run):
    shown, stored = read_thumbnails(run / "rollouts" / "thumbnails_000010_0.jsonl")
    assert len(shown) == 6
    assert [len(shown[f"10-0-{sample}"].pictures) for sample in range(3)] == [1, 1, 0]
    assert len({shown[f"10-0-{sample}"].overview for sample in range(3)}) == 1
    assert len(stored) == 2 * (1 + 2)


def test_pandas_reads_the_lines(run):
    frame = pd.read_json(run / "rollouts" / "step_000005_0.jsonl", lines=True)
    assert frame.groupby("group").advantage.mean().tolist() == [0, 0]


def test_every_so_many_steps_and_without_thumbnails(tmp_path):
    dump = RolloutDump(tmp_path, every=3, thumbnails_px=0)
    assert [step for step in range(1, 10) if dump.due(step)] == [3, 6, 9]
    assert not any(RolloutDump(tmp_path, 0, 64).due(step) for step in range(10))
    dumped(tmp_path, (3,), thumbnails_px=0)
    assert names(tmp_path) == ["step_000003_0.jsonl"]


def test_a_resumed_run_replaces_what_it_plays_again(tmp_path):
    dumped(tmp_path, (1, 2, 3))
    kept = (tmp_path / "rollouts" / "step_000001_0.jsonl").read_bytes()
    for name in ("step_000003_1.jsonl", "notes.txt"):  # of another process then; the user's own
        (tmp_path / "rollouts" / name).touch()
    dumped(tmp_path, (2,), text="again", start=1)
    assert names(tmp_path) == ["notes.txt", *(f"{k}_00000{n}_0.jsonl" for k in ("step", "thumbnails") for n in (1, 2))]
    assert (tmp_path / "rollouts" / "step_000001_0.jsonl").read_bytes() == kept
    assert lines(tmp_path, "step_000002_0.jsonl")[0]["turns"][0]["text"] == "again"


def test_a_full_disk_is_said_once_and_leaves_no_half_written_file(tmp_path, monkeypatch, capsys):
    fill = files._fill

    def full(path, content):
        fill(path, content[: len(content) // 2])
        if "step" in path.name:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_fill", full)
    dump = dumped(tmp_path, (1, 2, 3))
    assert dump.failed == 3
    assert [name for name in names(tmp_path) if not name.startswith("thumbnails")] == []
    first, last = capsys.readouterr().err.strip().splitlines()
    assert re.search(
        r"step 1 can't be dumped \(.*step_000001_0.jsonl: can't be written \(No space left on device\)\)", first
    )
    assert "3 steps could not be dumped" in last


def test_a_folder_that_can_t_be_made_and_a_bug_end_no_run(tmp_path, capsys):
    (tmp_path / "rollouts").touch()
    assert dumped(tmp_path, (1,)).failed == 1
    assert "the run goes on" in capsys.readouterr().err
    with RolloutDump(tmp_path / "other", 1, 64) as dump:
        dump.add(1, [], played(questions()), {})
    assert dump.failed == 1


def test_the_page_has_groups_with_their_episodes_the_newest_first(run, capsys):
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "rollouts.html")
    page = (run / "rollouts.html").read_text()
    rows, figures = embedded(page), embedded(page, "data")["figures"]
    assert [(row["step"], row["group"]) for row in rows] == [(10, 1), (10, 0), (5, 1), (5, 0)]
    assert figures == ["total", "iou", "own", "advantage"]
    assert [run["figures"] for run in rows[1]["runs"]] == [[2, 0, 0.5, 1], [1, 0, 0.25, 0], [0, 0, None, -1]]
    assert [run["sample"] for run in rows[1]["runs"]] == [0, 1, 2]
    assert (rows[1]["reference_looks"], "reference_looks" in rows[0]) == ([[200, 0, 400, 200]], False)
    shown = pictures(page)
    means = [int(np.asarray(shown[run["turns"][0]["picture"]].convert("RGB")).mean()) for run in rows[1]["runs"][:2]]
    assert means == pytest.approx([40, 100], abs=4)
    assert int(np.asarray(shown[rows[0]["overview"]].convert("RGB")).mean()) == pytest.approx(190, abs=4)
    assert "12 episodes of 4 groups, 2 steps from 5 to 10" in page


def test_texts_of_a_rollout_stay_texts(tmp_path, capsys):
    dumped(tmp_path, (1,), text=HOSTILE)
    line = lines(tmp_path, "step_000001_0.jsonl")[0]
    bad = [line | {"rewards": 3}, line | {"step": "1"}, line | {"turns": [{"text": 1}]}, line | {"id": [1]}, 3]
    bad += [line | {"reference_looks": boxes} for boxes in (7, [[1, 2, 3]], [["a"] * 4])]
    bad.append(line | {"id": "1-7-0", "group": 7, "rewards": {HOSTILE: HOSTILE}, "advantage": "x", "tokens": [HOSTILE]})
    with open(tmp_path / "rollouts" / "step_000002_0.jsonl", "w") as file:
        file.write("".join(json.dumps(line) + "\n" for line in bad) + '{"id": "cut o')
    assert main(["report", str(tmp_path)]) == 0
    assert "9 lines can't be read; left out" in capsys.readouterr().err
    page = (tmp_path / "rollouts.html").read_text()
    assert page.count("<script") == page.count("</script>") == 3 + 1  # settings, rows, pictures, the script itself
    elements = Elements()
    elements.feed(page)
    assert "img" not in elements.names
    assert not [name for name in elements.attributes if name.startswith("on")]
    assert embedded(page)[-1]["runs"][0]["turns"][0]["text"] == HOSTILE


def test_only_some_steps_and_what_there_is_not(run, tmp_path, capsys):
    assert main(["report", str(run), "--steps", "6", "10", "--out", str(tmp_path / "r.html")]) == 0
    assert {row["step"] for row in embedded((tmp_path / "r.html").read_text())} == {10}
    (tmp_path / "empty" / "rollouts").mkdir(parents=True)
    (tmp_path / "broken" / "rollouts").mkdir(parents=True)
    (tmp_path / "broken" / "rollouts" / "step_000001_0.jsonl").write_text("{\n")
    for args, told in (
        ([run, "--steps", "11", "12"], "no dumps of the steps 11 to 12"),
        ([run, run], "only evaluations are compared"),
        ([tmp_path / "empty"], "no dumps of rollouts; `zoomearth grpo --dump N`"),
        ([tmp_path / "broken"], "no line can be read"),
        ([tmp_path, "--steps", "1", "2"], "--steps is for runs"),
    ):
        capsys.readouterr()
        assert main(["report", *map(str, args), "--out", str(tmp_path / "none.html")]) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert told in said[-1]
        assert not (tmp_path / "none.html").exists()


def test_each_process_writes_its_own_groups_and_the_page_joins_them(tmp_path, monkeypatch):
    for process, share in ((0, 0), (1, 1), (2, 1)):  # the last two play the same ones, as those of a tensor group do
        monkeypatch.setattr(rollouts, "_process", lambda process=process: process)
        monkeypatch.setattr(rollouts, "process_share", lambda mesh, share=share: (share, 2))
        dumped(tmp_path, (4,), start=3 if process == 0 else 4)
    assert names(tmp_path)[:3] == [f"step_000004_{process}.jsonl" for process in range(3)]
    assert write_rollout_page(tmp_path / "r.html", tmp_path) == (4, 12)
    assert [row["group"] for row in embedded((tmp_path / "r.html").read_text())] == [3, 2, 1, 0]
