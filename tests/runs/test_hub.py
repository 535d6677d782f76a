"""Models of the Hugging Face hub: found by name, read from a cache laid out as a download lays it out, refused in one line."""

import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from tests.processes import ROOT, environment
from zoomearth_jax import cli
from zoomearth_jax.errors import UserError
from zoomearth_jax.runs.hub import PATTERNS, fetched, is_hub_name
from zoomearth_jax.runs.models import existing, load_rows, resolve

HASH = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def forget():
    fetched.cache_clear()
    yield
    fetched.cache_clear()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The hub's cache with the shipped model as Someone/Nano-1.0: files under the names of their hashes, and links to them."""
    repo = tmp_path / "hub" / "models--Someone--Nano-1.0"
    snapshot = repo / "snapshots" / HASH
    for folder in (snapshot, repo / "refs", repo / "blobs"):
        folder.mkdir(parents=True)
    (repo / "refs" / "main").write_text(HASH)
    for number, file in enumerate(sorted(resolve("nano").iterdir())):
        shutil.copyfile(file, repo / "blobs" / f"{number:040x}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"{number:040x}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return snapshot


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen/Qwen2.5-VL-3B-Instruct", True),
        (Path("Qwen/Qwen2.5-VL-3B-Instruct"), True),
        ("nano", False),
        ("runs/sft", False),
        ("./Qwen/x", False),
        ("../x", False),
        ("/Qwen/x", False),
        ("~/x", False),
        ("a/b/c", False),
        ("a/", False),
        ("a b/c", False),
        ("", False),
    ],
)
def test_names_of_the_hub(name, expected):
    assert is_hub_name(name) is expected


def test_a_cached_model_is_found_without_a_network(cache):
    assert existing("Someone/Nano-1.0") == cache
    assert load_rows(cache).layout.view_side == 112


def test_verbs_take_the_name(cache, capsys):
    assert cli.main(["convert", "Someone/Nano-1.0", "here", "--dtype", "bfloat16"]) == 0
    assert {"config.json", "model.safetensors", "tokenizer.json", "episode.json"} <= {
        p.name for p in Path("here").iterdir()
    }
    assert not any(path.is_symlink() for path in Path("here").iterdir())


def test_a_path_that_exists_comes_first(cache):
    shutil.copytree(resolve("nano"), "Someone/Nano-1.0")
    assert existing("Someone/Nano-1.0") == Path("Someone/Nano-1.0")


def test_a_process_asks_the_hub_once_for_what_matters(monkeypatch, tmp_path):
    asked = []

    def download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert existing("Someone/Model") == existing(Path("Someone/Model")) == tmp_path
    assert asked == [("Someone/Model", list(PATTERNS))]
    files = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "merges.txt",
        "vocab.json",
        "chat_template.jinja",
        "pytorch_model.bin",
        "model.gguf",
        "picture.png",
    ]
    taken = list(huggingface_hub.utils.filter_repo_objects(files, allow_patterns=asked[0][1]))
    assert taken == files[:7]


def answered(kind, status: int):
    """An error of the hub with the response that it carries."""
    from huggingface_hub.utils import _http

    web = getattr(_http, "httpx", None) or _http.httpx2
    request = web.Request("GET", "https://huggingface.co/api/models/Someone/Model")
    return kind("Access is refused.\nMore lines.", response=web.Response(status, request=request))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            lambda: answered(errors.RepositoryNotFoundError, 401),
            "no such model on the Hugging Face hub; give a model directory",
        ),
        (
            lambda: answered(errors.GatedRepoError, 403),
            "accept the terms at huggingface.co/Someone/Model and run `hf auth login`",
        ),
        (lambda: answered(errors.HfHubHTTPError, 500), r"the Hugging Face hub can't give it \(Access is refused\.\)"),
        (lambda: OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_what_the_hub_refuses_is_said_in_one_line(error, message, monkeypatch):
    def download(name, allow_patterns):
        raise error()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(UserError, match=message) as caught:
        existing("Someone/Model")
    assert str(caught.value).startswith("Someone/Model: no such directory, ")
    assert "\n" not in str(caught.value)


def test_without_the_network_and_the_model(cache, capsys):
    assert cli.main(["evaluate", "--model", "Someone/Other"]) == 2
    said = capsys.readouterr().err
    assert said == (
        "zoomearth: Someone/Other: no such directory, HF_HUB_OFFLINE forbids asking the Hugging Face hub, and its cache holds no "
        "such model; unset it, or give a model directory; `hf download Someone/Other --local-dir DIR` makes one where there is "
        "a network\n"
    )
    assert cli.main(["evaluate", "--model", "runs/other"]) == 2
    assert "runs/other: no such model; give a model directory, a run, or one of" in capsys.readouterr().err


def test_a_hub_that_can_t_be_reached(tmp_path):
    """In a process of its own, whose hub is a port of this machine that nobody listens at."""
    code = (
        "from zoomearth_jax.runs.hub import fetched\n"
        "from zoomearth_jax.errors import UserError\n"
        "try: fetched('Someone/Model')\n"
        "except UserError as error: print(error)"
    )
    env = environment(1) | {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert "the Hugging Face hub can't be reached (" in done.stdout, done.stderr
    assert done.stdout.count("\n") == 1
