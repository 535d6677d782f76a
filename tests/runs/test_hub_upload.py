"""Uploads of exports by huggingface_hub itself to a small hub on this machine; what is refused is one line, the export stays."""

import json
import shutil

import pytest
import yaml
from huggingface_hub import constants

from tests.runs.fake_hub import FakeHub
from zoomearth_jax.cli import main
from zoomearth_jax.configs.io import write_yaml
from zoomearth_jax.configs.optimizer import OptimizerConfig
from zoomearth_jax.configs.training import GRPOConfig
from zoomearth_jax.runs.hub_upload import upload
from zoomearth_jax.runs.model_card import model_card
from zoomearth_jax.runs.models import resolve

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # how huggingface_hub sends a file


@pytest.fixture
def hub(monkeypatch):
    """A hub that the library asks, with a token that it knows."""
    fake = FakeHub()
    monkeypatch.setattr(constants, "ENDPOINT", fake.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # LFS instead
    monkeypatch.setenv("HF_TOKEN", fake.token)
    yield fake
    fake.close()


@pytest.fixture
def folder(tmp_path):
    """An export with a file of the user's own beside it."""
    for name in ("config.json", "model.safetensors", "README.md", "notes.pkl"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


FILES = ["README.md", "config.json", "model.safetensors"]


def test_an_export_is_uploaded_by_the_verb(hub, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "secret.pkl").write_text("mine")
    source = shutil.copytree(resolve("nano"), tmp_path / "source", ignore=shutil.ignore_patterns("README.md"))
    args = [
        "convert",
        str(source),
        str(out),
        "--push-to-hub",
        "Some-One/zoom.nano",
        "--commit-message",
        "First try",
    ]
    assert main([*args, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["url"] == f"{hub.address}/Some-One/zoom.nano"
    (name,) = hub.repos
    repo = hub.repos[name]
    assert (name, repo["visibility"], repo["messages"]) == ("Some-One/zoom.nano", "private", ["First try"])
    assert {"config.json", "model.safetensors", "tokenizer.json", "episode.json", "README.md"} <= repo["files"].keys()
    assert repo["files"] == {path.name: path.read_bytes() for path in out.iterdir() if path.name != "secret.pkl"}
    assert "zoomearth ask image.tif" in (out / "README.md").read_text()


def test_a_repository_that_is_there_needs_overwrite(hub, folder):
    upload(folder, FILES, "Someone/M", public=True, message="one", replace=False)
    assert hub.repos["Someone/M"]["visibility"] == "public"
    with pytest.raises(Exception, match="is there already; --overwrite adds a commit to it, or take another name"):
        upload(folder, FILES, "Someone/M", public=False, message="two", replace=False)
    hub.repos["Someone/M"]["files"] |= {
        "model-00001-of-00002.safetensors": b"",
        "model.safetensors.index.json": b"",
        "x.txt": b"",
    }
    (folder / "config.json").write_text("new")
    upload(folder, FILES, "Someone/M", public=False, message="two", replace=True)
    assert sorted(hub.repos["Someone/M"]["files"]) == ["README.md", "config.json", "model.safetensors", "x.txt"]
    assert hub.repos["Someone/M"]["files"]["config.json"] == b"new"
    assert hub.repos["Someone/M"]["messages"] == ["one", "two"]


@pytest.mark.parametrize(
    ("end", "status", "said", "told"),
    [
        ("/create", 403, "You don't have the rights", "the token may not write there (You don't have the rights"),
        ("/create", 401, "Invalid", "doesn't know the token; run `hf auth login` again"),
        ("/commit/main", 403, "Quota\nexceeded", "the token may not write there ("),
        ("/preupload/main", 413, "Private storage limit reached", "refuses it (Private storage limit reached"),
        ("/objects/batch", 402, "Payment required", "refuses it ("),
    ],
)
def test_what_the_hub_refuses_is_one_line_and_the_export_is_whole(end, status, said, told, hub, tmp_path, capsys):
    hub.refusals[end] = status, said
    out = tmp_path / "out"
    assert main(["convert", str(resolve("nano")), str(out), "--push-to-hub", "Someone/M"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("zoomearth: --push-to-hub Someone/M: ")
    assert told in error
    assert f"; {out} is whole, `hf upload Someone/M {out}` uploads it too" in error
    for name in ("model.safetensors", "README.md"):  # it has a card of its own
        assert (out / name).read_bytes() == (resolve("nano") / name).read_bytes()
    assert not any(repo["files"] for repo in hub.repos.values())


def test_what_is_known_beforehand_is_refused_before_anything_is_written(hub, tmp_path, monkeypatch, capsys):
    def refused(*more):
        assert main(["convert", str(resolve("nano")), str(tmp_path / "out"), *more]) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    assert "no name of the Hugging Face hub; give OWNER/NAME" in refused("--push-to-hub", "just-a-name")
    assert "leave --to orbax out" in refused("--push-to-hub", "Someone/M", "--to", "orbax")
    assert "give --push-to-hub OWNER/NAME too" in refused("--public")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE forbids" in refused("--push-to-hub", "Someone/M")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    assert "no token; run `hf auth login`, or set HF_TOKEN" in refused("--push-to-hub", "Someone/M")
    assert not hub.repos


def test_a_hub_that_nobody_answers_for(hub, folder, monkeypatch):
    hub.close()
    with pytest.raises(Exception, match=r"can't be reached \(.*\); .* is whole"):
        upload(folder, FILES, "Someone/M", public=False, message="x", replace=False)


@pytest.fixture
def run(tmp_path):
    """A run's directory as far as its card needs it."""
    shutil.copy(resolve("nano") / "config.json", tmp_path)
    write_yaml(
        tmp_path / "run.yaml",
        GRPOConfig(model="Qwen/Qwen2.5-VL-3B-Instruct", out=tmp_path, steps=9, optimizer=OptimizerConfig(lr=1e-5)),
    )
    rows = [{"schema": 1, "step": i, "reward_total": i / 2, "perf/seconds": 1.0} for i in range(1, 7)]
    rows[2]["validation/accuracy"] = 0.25
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step in (4, 6):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    return tmp_path


def test_a_card_has_what_differs_and_what_was_measured(run):
    text = model_card("Someone/M", run, step=4)
    head, body = text.removeprefix("---\n").split("\n---\n")
    assert yaml.safe_load(head)["base_model"] == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert "for 4 of 9 steps, with `zoomearth grpo --config settings.yaml`" in body
    block = "\n".join(line[4:] for line in body.splitlines() if line.startswith("    "))
    assert yaml.safe_load(block) == {"model": "Qwen/Qwen2.5-VL-3B-Instruct", "steps": 9, "optimizer": {"lr": 1e-5}}
    assert [line for line in body.splitlines() if line.startswith("| `")] == [
        "| `reward_total` | 2 | 4 |",
        "| `validation/accuracy` | 0.25 | 3 |",
    ]
    assert "| `reward_total` | 3 | 6 |" in model_card("Someone/M", run)


def test_a_card_states_no_metric_that_was_not_measured(run):
    (run / "metrics.jsonl").unlink()
    assert "Metrics" not in model_card("Someone/M", run)
    (run / "run.yaml").write_text("model: runs/`sft`|\nsteps: 3\n")  # of another version
    text = model_card("Someone/M", run)
    assert "Trained from `runs/'sft'/` for 6 of 3 steps;" in text
    assert "base_model" not in text
