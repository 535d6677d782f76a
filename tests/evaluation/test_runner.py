"""An evaluation gives the same records whatever the batches and processes, and goes on after a kill as if nothing had been."""

import json
import shutil
import signal

import pytest

from tests.evaluation.official_files import mme_row, picture, write_mme
from tests.processes import address, start
from zoomearth_jax.cli import main
from zoomearth_jax.evaluation import runner
from zoomearth_jax.evaluation.identity import config_hash, model_identity
from zoomearth_jax.runs.models import resolve

LIMIT = 14
PLAIN = ["evaluate", "--temperature", "1", "--crops", "shown"]
ARGS = [*PLAIN, "--limit", str(LIMIT), "--batch-size", "3"]


def records(folder):
    """The records of a folder without what differs from time to time."""
    lines = (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of an evaluation in batches of three, from beginning to end."""
    out = tmp_path_factory.mktemp("undisturbed")
    assert main([*ARGS, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of the same, killed with two batches and half of the third on the disk."""
    out = tmp_path_factory.mktemp("killed")
    process = start("evaluation/dying.py", 1, 2, *ARGS, "--out", out)
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    text = (out / "records.jsonl").read_text(encoding="utf-8")
    assert 6 <= text.count("\n") < 9
    assert not text.endswith("\n")
    assert not (out / "results.json").exists()
    return out


def test_what_was_killed_goes_on_as_if_nothing_had_been(undisturbed, killed, tmp_path):
    out = shutil.copytree(killed, tmp_path / "out")
    assert main([*ARGS, "--out", str(out), "--resume"]) == 0
    assert records(out) == records(undisturbed)
    now, then = (json.loads((folder / "results.json").read_text()) for folder in (out, undisturbed))
    assert now["runs"]["shown"]["summary"] == then["runs"]["shown"]["summary"]
    assert now["config_hash"] == then["config_hash"] == records(out)[0]["config"]
    episodes = [json.loads(line)["id"] for line in (out / "thumbnails.jsonl").read_text().splitlines()]
    assert set(episodes) == {record["id"] for record in records(out)}


def test_batches_change_no_prediction(undisturbed, tmp_path, capsys):
    assert main([*PLAIN, "--limit", str(LIMIT), "--batch-size", "8", "--out", str(tmp_path), "--json"]) == 0
    assert records(tmp_path) == records(undisturbed)
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "results.json").read_text())


@pytest.mark.slow
def test_two_processes_finish_what_one_began(undisturbed, killed, tmp_path):
    out, where = shutil.copytree(killed, tmp_path / "out"), address()
    mesh = ["--mesh.coordinator", where, "--mesh.processes", "2"]
    started = [
        start("evaluation/dying.py", 2, 99, *ARGS, "--out", out, "--resume", *mesh, "--mesh.process", i)
        for i in range(2)
    ]
    said = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0], [err[-2000:] for _, err in said]
    assert ["accuracy" in printed for printed, _ in said] == [True, False]
    assert records(out) == records(undisturbed)
    assert [file.name for file in out.glob("records*")] == ["records.jsonl"]


@pytest.mark.slow
def test_two_processes_play_a_benchmark_as_one_does(tmp_path):
    """Seven rows, an image that can't be read among them, in two ways of showing crops."""
    texts = ["What color is the roof?", "Which roof is red?"]
    write_mme(tmp_path, [mme_row(n, Text=texts[n % 2]) for n in range(6)] + [mme_row(6, Image="broken.png")])
    picture(tmp_path / "broken.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "broken.png").read_bytes()[:60])
    args = ["evaluate", "--benchmark", "mme-realworld-rs", "--data", tmp_path, "--crops", "shown", "masked"]
    args += ["--temperature", "1", "--batch-size", "2"]
    mesh = ["--mesh.coordinator", address(), "--mesh.processes", "2", "--mesh.fsdp", "2"]
    one, two = tmp_path / "one", tmp_path / "two"
    started = [
        start("evaluation/dying.py", 4, 99, *args, "--out", two, *mesh, "--mesh.process", number) for number in (0, 1)
    ]
    started.append(start("evaluation/dying.py", 1, 99, *args, "--out", one))
    for process in started:
        _, err = process.communicate(timeout=500)
        assert process.returncode == 0, err[-2000:]
    for folder in (".", "masked"):
        assert records(two / folder) == records(one / folder)
        assert len(records(one / folder)) == 7
        assert [bool(record.get("fault")) for record in records(one / folder)] == [False] * 6 + [True]
    ours, theirs = (json.loads((out / "results.json").read_text()) for out in (two, one))
    assert ours["counts"] == theirs["counts"]
    for crops in ("shown", "masked"):
        assert ours["runs"][crops]["summary"] == theirs["runs"][crops]["summary"]


def test_a_cut_line_alone_is_no_record(undisturbed, tmp_path):
    (tmp_path / "records.jsonl").write_bytes((undisturbed / "records.jsonl").read_bytes()[:100])
    assert main([*ARGS, "--out", str(tmp_path), "--resume"]) == 0
    assert records(tmp_path) == records(undisturbed)


def test_nothing_is_played_twice(undisturbed, tmp_path, monkeypatch):
    out = shutil.copytree(undisturbed, tmp_path / "out")
    monkeypatch.setattr(runner, "play_batches", None)
    assert main([*ARGS, "--out", str(out), "--resume"]) == 0
    assert records(out) == records(undisturbed)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "pass --resume to go on with what they lack, --overwrite to start anew"),
        (["--resume", "--seed", "1"], "records of other settings"),
        (["--resume", "--temperature", "0.5"], "records of other settings"),
        (["--resume", "--model", "nano"], "records of other settings"),
        (["--resume", "--layout.view-px", "84"], "records of other settings"),
        (["--resume", "--global-share", "0"], "or its image has changed since"),
    ],
)
def test_records_of_something_else_are_refused(undisturbed, tmp_path, capsys, more, message):
    out = shutil.copytree(undisturbed, tmp_path / "out")
    assert main([*ARGS, "--out", str(out), *more]) == 2
    error = capsys.readouterr().err
    assert f"{out}/records.jsonl: " in error
    assert message in error
    assert error.count("\n") == 1
    assert records(out) == records(undisturbed)


def test_questions_that_are_gone_are_refused(undisturbed, tmp_path, capsys):
    out = shutil.copytree(undisturbed, tmp_path / "out")
    assert main([*PLAIN, "--limit", "3", "--out", str(out), "--resume"]) == 2
    assert "question 'scenes 0: 3' isn't in the data any more" in capsys.readouterr().err


def test_overwriting_starts_anew(undisturbed, tmp_path):
    out = shutil.copytree(undisturbed, tmp_path / "out")
    how = ["--limit", "3", "--batch-size", "3", "--seed", "1"]
    assert main([*PLAIN, *how, "--out", str(out), "--overwrite"]) == 0
    assert [record["id"] for record in records(out)] == [f"scenes 1: {i}" for i in range(3)]
    assert len((out / "thumbnails.jsonl").read_text().splitlines()) == 3


def test_shards_make_up_the_whole(undisturbed, tmp_path, capsys):
    for part in (1, 2):
        assert main([*ARGS, "--shard", f"{part}/2", "--out", str(tmp_path / str(part))]) == 0
        results = json.loads((tmp_path / str(part) / "results.json").read_text())
        assert (results["counts"]["scored"], results["counts"]["total"]) == (7, LIMIT)
    assert f"questions: 7 of {LIMIT} questions" in capsys.readouterr().out
    whole = {record["id"]: record for record in records(undisturbed)}
    parts = [record for part in (1, 2) for record in records(tmp_path / str(part))]
    assert {record["id"]: record for record in parts} == whole
    files = [str(tmp_path / str(part) / "records.jsonl") for part in (1, 2)]
    assert main(["score", *files, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["summary"]
    assert (
        figures["official"]
        == json.loads((undisturbed / "results.json").read_text())["runs"]["shown"]["summary"]["official"]
    )


def test_one_view_and_no_tool(tmp_path):
    layout = ["--layout.view-px", "168", "--layout.turn-lens", "24"]
    assert main(["evaluate", "--limit", "3", "--out", str(tmp_path), *layout, "--crops", "shown"]) == 0
    found = records(tmp_path)
    assert [len(record["turns"]) for record in found] == [1, 1, 1]
    assert {record["visual_tokens"] for record in found} == {36}


@pytest.mark.slow
def test_without_crops_and_with_fewer_tokens(tmp_path):
    """`none` tells how many answers crops fix; pruned tokens are not counted."""
    prune = ["--prune.kind", "attention", "--prune.keep", "4"]
    how = ["--limit", "3", "--batch-size", "3", "--out", str(tmp_path)]
    assert main(["evaluate", *how, "--crops", "none", "shown", *prune]) == 0
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert runs["shown"]["summary"]["crops"]["questions"] == 3
    assert "crops" not in runs["none"]["summary"]
    for record in records(tmp_path):
        assert record["visual_tokens"] == 4 * len(record["turns"])
    assert {record["visual_tokens"] for record in records(tmp_path / "none")} == {4}
    assert main(["evaluate", *how, "--crops", "none", "shown", "--resume"]) == 2


def test_a_model_is_known_by_its_content(tmp_path):
    model = shutil.copytree(resolve("nano"), tmp_path / "moved")
    assert model_identity(model) == model_identity(resolve("nano")) != model_identity(resolve("nano-grpo"))
    weights = next(model.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert model_identity(model) != model_identity(resolve("nano"))


def test_the_hash_follows_from_the_settings_only():
    assert (
        config_hash(seed=1, crops="shown") == config_hash(crops="shown", seed=1) != config_hash(seed=2, crops="shown")
    )
