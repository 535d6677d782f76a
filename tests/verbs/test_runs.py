"""`zoomearth runs`: what a folder of runs holds, what differs between runs, and plots; damaged runs are notes, not errors."""

import html
import io
import json
import re
import time

import pandas as pd
import pytest
from PIL import Image

from zoomearth_jax.cli import main
from zoomearth_jax.files import Lock
from zoomearth_jax.reports.run_plots import running_mean
from zoomearth_jax.runs.listing import best

pytestmark = pytest.mark.filterwarnings("ignore:Matplotlib is building")  # the font cache, at its first use


def made(folder, steps=4, planned=4, metric="reward_total", settings="group: 4\nmodel: nano\n", values=None):
    """A run's directory with as many rows."""
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(f"{settings}steps: {planned}\nout: {folder}\n")
    values = values or [0.5 * step for step in range(1, steps + 1)]
    rows = [{"schema": 1, "step": i, "perf/seconds": 1.5, metric: x} for i, x in enumerate(values, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def listed(folder, capsys):
    capsys.readouterr()
    assert main(["runs", "list", str(folder), "--json"]) == 0
    return {run["run"].rpartition("/")[2]: run for run in json.loads(capsys.readouterr().out)}


def test_a_list_tells_kind_steps_state_and_metrics(tmp_path, capsys):
    made(tmp_path / "b" / "grpo")
    stopped = made(tmp_path / "sft", 2, metric="loss", settings="pack_len: 0\nmodel: Qwen/Q\n", values=[3.0, None])
    running = made(tmp_path / "a", 1)
    (tmp_path / "grpo_panels").mkdir()
    (running / "checkpoints" / "4").mkdir(parents=True)
    (running / "checkpoints" / "4" / "run.yaml").touch()  # inside a run nothing is looked for
    (stopped / "weights").write_bytes(b"0" * 3_000_000)
    with Lock(running, "taken"):
        found = listed(tmp_path, capsys)
    assert list(found) == ["a", "grpo", "sft"]
    assert {
        name: (run["kind"], run["model"], run["step"], run["steps"], run["state"]) for name, run in found.items()
    } == {
        "a": ("grpo", "nano", 1, 4, "running"),
        "grpo": ("grpo", "nano", 4, 4, "finished"),
        "sft": ("sft", "Qwen/Q", 2, 4, "stopped"),
    }
    assert (found["grpo"]["reward_total"], found["grpo"]["seconds"], found["grpo"]["loss"]) == (2, 6, None)
    assert (found["sft"]["loss"], found["sft"]["megabytes"]) == (3, 3)
    assert listed(tmp_path, capsys)["a"]["state"] == "stopped"
    frame = pd.read_json(io.StringIO(json.dumps(list(found.values()))))
    assert frame.reward_total.max() == 2
    assert main(["runs", "list", str(tmp_path)]) == 0
    assert "4/4  finished" in capsys.readouterr().out


def test_damaged_runs_are_notes(tmp_path, capsys):
    with open(made(tmp_path / "lines") / "metrics.jsonl", "a") as file:
        file.write('[]\n{"step": "x"}\n{"schema": 99, "step": 9}\n{"schema": 1, "step": 5, "reward_total": 7}\n{"cut o')
    (made(tmp_path / "list") / "run.yaml").write_text("- 1\n")
    (made(tmp_path / "yaml") / "run.yaml").write_text("a: [\n")
    (made(tmp_path / "later") / "run.yaml").write_text("new_setting: {deep: 1}\nsteps: many\n")
    (made(tmp_path / "bytes") / "run.yaml").write_bytes(b"\xff\xfe\x00")
    (made(tmp_path / "empty") / "metrics.jsonl").unlink()
    (made(tmp_path / "none") / "run.yaml").unlink()
    found = listed(tmp_path, capsys)
    assert {name: run["note"] for name, run in found.items()} == {
        "lines": "4 lines of metrics.jsonl can't be read",
        "list": "run.yaml holds no settings",
        "yaml": "run.yaml is not YAML",
        "bytes": "run.yaml is not YAML",
        "later": "",
        "empty": "",
        "none": "no run.yaml",
    }
    assert (found["lines"]["step"], found["lines"]["reward_total"]) == (5, 7)
    assert (found["empty"]["step"], found["empty"]["updated"], found["later"]["steps"]) == (None, "", None)
    assert main(["runs", "list", str(tmp_path)]) == 0
    assert len(capsys.readouterr().err.splitlines()) == 5


def test_many_runs_are_quick(tmp_path, capsys):
    for number in range(100):
        made(tmp_path / f"run{number}", 130)
    began = time.process_time()
    assert len(listed(tmp_path, capsys)) == 100
    assert time.process_time() - began < 2


def test_a_comparison_has_what_differs_and_the_best(tmp_path, capsys):
    a = made(
        tmp_path / "a", settings="group: 4\nmodel: nano\noptimizer: {lr: 1.0e-05, b: 1}\n", values=[1.0, 3.0, 3.0, 2.0]
    )
    b = made(tmp_path / "b", settings="group: 8\nmodel: nano\noptimizer: {lr: 2.0e-05, b: 1}\nnew: [1]\n", values=[4.0])
    assert main(["runs", "compare", str(a), str(b), "--step", "3", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["settings"] == {
        "group": {"a": 4, "b": 8},
        "optimizer.lr": {"a": 1e-5, "b": 2e-5},
        "new": {"a": None, "b": [1]},
    }
    first, second = report["metrics"]
    assert first == {"metric": "reward_total", "run": "a", "last": 2, "at": 4, "best": 3, "best at": 2, "step 3": 3}
    assert (second["run"], second["best"], second["step 3"]) == ("b", 4, None)
    assert main(["runs", "compare", str(a), str(b)]) == 0
    assert "optimizer.lr" in capsys.readouterr().out


def test_low_is_better_for_losses():
    assert (
        best([(1, 2.0), (2, 1.0), (3, 1.0)], "loss")
        == best([(1, 2.0), (2, 1.0), (3, 1.0)], "validation/truncated")
        == (2, 1)
    )
    assert best([(1, 2.0), (2, 1.0)], "reward_total") == (1, 2)


def test_runs_of_the_same_name_keep_their_paths(tmp_path, capsys):
    a, b = made(tmp_path / "x" / "grpo"), made(tmp_path / "y" / "grpo")
    assert main(["runs", "compare", str(a), str(b), "--json"]) == 0
    assert [row["run"] for row in json.loads(capsys.readouterr().out)["metrics"]] == [str(a), str(b)]


def test_plots(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib isn't installed (the extra `plot`)")
    a, b = made(tmp_path / "a", 50), made(tmp_path / "_$b^<i>", metric="entropy")
    args = ["runs", "plot", str(a), str(b), "--metric", "reward_total", "entropy", "--out"]
    assert main([*args, str(tmp_path / "p.png")]) == 0
    assert "a: has no entropy" in capsys.readouterr().err
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.size == (1680, 480)
        assert len(picture.convert("RGB").getcolors(2**20)) > 10
    assert main([*args, str(tmp_path / "p.html")]) == 0
    page = (tmp_path / "p.html").read_text()
    assert "default-src 'none'" in html.unescape(page)
    assert page.count("data:image/svg+xml;base64,") == 2
    assert not re.search(r'(src|href)="(?!data:)|<script|<i>', page)
    assert "<td>_$b^&lt;i&gt;</td>" in page


def test_a_running_mean_by_hand():
    assert running_mean([1.0, 1.0]) == pytest.approx([1, 1])
    assert running_mean([0.0, 1.0], 0.5) == pytest.approx([0, 0.5 / 0.75])


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["list", "nowhere"], "nowhere: no such folder"),
        (["compare"], "name the directories"),
        (["compare", "a", "nowhere"], "nowhere: no run; `zoomearth runs list`"),
        (["plot", "a", "--metric", "reward_totl"], "did you mean 'reward_total'?"),
        (["plot", "a", "--out", "p.pdf"], "--out writes a .png or .html file"),
        (["plot", "a", "--out", "a"], "--out writes a .png or .html file"),
        (["lst"], "did you mean 'list'?"),
    ],
)
def test_what_can_t_be_is_one_line(args, told, tmp_path, monkeypatch, capsys):
    made(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    assert main(["runs", *args]) == 2
    said = capsys.readouterr().err.strip()
    assert told in said
    assert "\n" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
