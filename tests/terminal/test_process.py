"""The command under real conditions, in processes of its own: Ctrl-C, streams, locales, and a second run in the same folder."""

import io
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest

from tests.runs.test_preemption import members
from zoomearth_jax import cli
from zoomearth_jax.configs.training import GRPOConfig, SFTConfig
from zoomearth_jax.hardware import tpu_flags
from zoomearth_jax.runs import saved_steps
from zoomearth_jax.terminal.process import explained, set_streams
from zoomearth_jax.verbs.grpo import grpo
from zoomearth_jax.verbs.sft import sft

SFT = ["--questions", "48", "--batch-size", "8", "--steps", "4000", "--checkpoint-every", "3"]


def command(*args, **more):
    """A verb in a process group of its own."""
    line = [sys.executable, "-m", "zoomearth_jax.cli", *map(str, args)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True, "text": True}
    return subprocess.Popen(line, **streams | more)


def without_progress(err):
    """What was said but for the lines that tell on a slow machine how far the work is."""
    return "".join(line for line in err.splitlines(keepends=True) if " a second, " not in line)


def interrupted(process, again=False):
    """Sends Ctrl-C to the whole group, as a terminal does; what was said, and nobody may stay."""
    os.killpg(process.pid, signal.SIGINT)
    if again:
        time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
    began = time.monotonic()
    err = process.communicate(timeout=30)[1]
    assert process.returncode == 130, err
    assert time.monotonic() - began < 20  # two seconds, and what a loaded machine adds
    assert not members(process.pid)
    return without_progress(err)


@pytest.mark.slow
def test_ctrl_c_while_images_are_written(tmp_path):
    process = command("scenes", "--out", tmp_path, "--count", 9999, "--side", 1000)
    while not list(tmp_path.glob("*.tif")):
        assert process.poll() is None
    assert interrupted(process) == "zoomearth: interrupted\n"
    assert {path.suffix for path in tmp_path.iterdir()} == {".tif"}


@pytest.mark.slow
def test_a_run_at_work_is_left_alone_and_ends_by_ctrl_c(tmp_path, capsys):
    """With data workers, and steps in flight."""
    process = command("sft", "--out", tmp_path, "--workers", 1, *SFT)
    while not saved_steps.numbers(tmp_path / "checkpoints"):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    for how in ("--resume", "--overwrite"):
        assert cli.main(["sft", "--out", str(tmp_path), *SFT, how]) == 2
        assert "another run is at work in this directory" in capsys.readouterr().err
    assert interrupted(process) == "zoomearth: interrupted; --resume goes on from the last checkpoint\n"
    assert saved_steps.numbers(tmp_path / "checkpoints")


def test_a_second_ctrl_c_and_one_during_the_imports(tmp_path):
    process = command("sft", "--out", tmp_path / "run")
    time.sleep(0.5)
    assert interrupted(process, again=True) == "zoomearth: interrupted\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["sft", "sft --workers 2", "grpo --model nano-grpo"])
def test_ctrl_c_at_any_moment(verb, tmp_path):
    """A run that was stopped goes on; one that had no step has left nothing."""
    draw = random.Random(verb)
    for number in range(12):
        out = tmp_path / str(number)
        more = ["--checkpoint-every", 2, "--steps", 4000, "--out", out]
        process = command(*verb.split(), *more)
        time.sleep(draw.uniform(0.2, 20))
        said = interrupted(process, again=number % 4 == 0).splitlines()
        assert [line for line in said if "reward version" not in line][-1].startswith("zoomearth: interrupted")
        assert len(said) <= 2
        assert not out.exists() or (out / "run.yaml").exists()
        for number in saved_steps.numbers(out / "checkpoints"):
            saved_steps.read_record(out / "checkpoints" / str(number))


@pytest.mark.parametrize(
    ("shell", "code", "said"),
    [
        ("{} scenes --help | true", 141, ""),
        ("{} --version > /dev/full", 2, "zoomearth: {}No space left on device\n"),
        ("{} --version >&-", 0, ""),
        ("{} --version 2>&- <&-", 0, ""),
        ("{} scenes --out f/x 2>&-", 2, ""),
        ("{} scenes --out f/x", 2, "zoomearth: f/x: can't be written (Not a directory)\n"),
        (
            "env PYTHONIOENCODING=ascii {} tile näher/é.tif",
            2,
            "zoomearth: n\\xe4her/\\xe9.tif: no such file or folder\n",
        ),
        ("env -u HOME {} scenes --out ~nobody-such/x --side 9", 2, None),
        (
            "{} scenes --config=ü.yaml",
            2,
            "zoomearth: ü.yaml: unknown key 'zähler'; known: out, nested, count, side, format, seed\n",
        ),
    ],
)
def test_streams_and_locales(shell, code, said, tmp_path):
    (tmp_path / "f").touch()
    (tmp_path / "ü.yaml").write_text("zähler: 3", encoding="utf-8")
    line = f"{shell.format(f'{sys.executable} -m zoomearth_jax.cli')}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert said is None or done.stderr in (said.format(""), said.format("standard output: "))  # by when it is flushed
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_an_ascii_locale_knows_utf_8_all_the_same(tmp_path):
    """Paths, settings, and what is written."""
    (tmp_path / "ü.yaml").write_text("{count: 1, side: 200, out: é/ß}", encoding="utf-8")
    env = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for args in (["--config", "ü.yaml"], ["--out", "名 [1]{%d}*?", "--count", "1", "--side", "200"]):
        done = command("scenes", *args, cwd=tmp_path, env=env)
        assert done.communicate(timeout=60)[1] == ""
        assert done.returncode == 0
    assert (tmp_path / "é" / "ß" / "questions.jsonl").exists()
    assert (tmp_path / "名 [1]{%d}*?" / "questions.jsonl").exists()


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path):
    """Files can't grow beyond 60 kB, as if the disk were full: metrics fit, arrays don't."""
    config = SFTConfig(out=tmp_path / "run[1e-3]", questions=16, batch_size=8, steps=4, checkpoint_every=2)
    sft(config)
    steps = config.out / "checkpoints"
    shutil.rmtree(steps / "4")
    args = ["sft", "--out", config.out, "--questions", 16, "--batch-size", 8, "--steps", 4, "--checkpoint-every", 2]
    line = [
        "bash",
        "-c",
        'ulimit -f 60; exec "$@"',
        "bash",
        sys.executable,
        "-m",
        "zoomearth_jax.cli",
        *args,
        "--resume",
    ]
    done = subprocess.run([*map(str, line)], capture_output=True, text=True, timeout=300)
    err = without_progress(done.stderr)
    assert done.returncode == 2, err
    said = [line for line in err.splitlines() if "compilation cache" not in line and "warnings.warn" not in line]
    assert len(said) == 1, err
    assert said[0].startswith(f"zoomearth: {steps}: a checkpoint can't be written (")
    assert saved_steps.numbers(steps) == [2]
    assert cli.main([*map(str, args), "--resume"]) == 0
    assert saved_steps.numbers(steps) == [2, 4]


STARTS = {
    "no such model": ["--model", "nowhere"],
    "no such data": ["--data", "nowhere"],
    "a mesh that doesn't fit": ["--mesh.data", "7"],
    "a sink without its package": ["--log", "mlflow"],
    "a step that doesn't divide": ["--accumulate", "3"],
    "a question that doesn't fit": ["--data", "{}/long"],
    "images that can't be read": ["--data", "{}/broken"],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Data that a run can't start with, and a run."""
    folder = tmp_path_factory.mktemp("starts")
    for name in ("long", "broken"):
        assert cli.main(["scenes", "--out", str(folder / name), "--count", "1", "--side", "300"]) == 0
    questions = folder / "long" / "questions.jsonl"
    questions.write_text(questions.read_text(encoding="utf-8").replace("Which", "Which, why, " * 100), encoding="utf-8")
    image = next((folder / "broken").glob("*.tif"))
    image.write_bytes(image.read_bytes()[:20_000])
    sft(SFTConfig(out=folder / "run", questions=16, batch_size=8, steps=1))
    return folder


@pytest.mark.parametrize("verb", ["sft", "grpo --model nano-grpo"])
@pytest.mark.parametrize("why", STARTS)
def test_a_failed_start_leaves_nothing_and_harms_nothing(verb, why, folders, capsys):
    size = ["--batch-size" if verb == "sft" else "--prompts", "4"]
    args = [*verb.split(), *size, *(part.format(folders) for part in STARTS[why]), "--out"]
    before = {path: path.stat().st_mtime_ns for path in folders.rglob("*") if path.is_file()}
    for out in (["new/er"], ["run", "--overwrite"]):
        capsys.readouterr()
        assert cli.main([*args, str(folders / out[0]), *out[1:]]) == 2
        said = [line for line in capsys.readouterr().err.splitlines() if "warning:" not in line]
        assert len([line for line in said if "reward version" not in line]) == 1
    assert {path: path.stat().st_mtime_ns for path in folders.rglob("*") if path.is_file()} == before
    assert not (folders / "new").exists()


@pytest.mark.slow
def test_an_overwritten_run_is_replaced_once_a_step_is_done(folders):
    out = shutil.copytree(folders / "run", folders / "again")
    (out / "notes.txt").write_text("mine")
    (out / "panels").mkdir()
    grpo(GRPOConfig(model="nano-grpo", out=out, prompts=2, group=2, steps=2, overwrite=True))
    assert saved_steps.numbers(out / "checkpoints") == [2]
    assert "prompts: 2" in (out / "run.yaml").read_text()
    assert (out / "notes.txt").exists()
    assert not (out / "panels").exists()
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_which_errors_are_whose():
    assert explained(PermissionError(13, "Permission denied", "a b")) == "a b: Permission denied"
    assert explained(OSError(28, "No space left on device")) == "No space left on device"
    assert explained(MemoryError("Unable to allocate 9 GiB")).startswith("out of memory (Unable to allocate 9 GiB)")
    assert "UTF-8" in explained(UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"))
    for bug in (KeyError("x"), RecursionError(), ValueError("x"), OSError("a library's own")):
        assert explained(bug) is None


def test_no_place_for_programs_is_no_fault(monkeypatch):
    import jax

    known = jax.config.jax_compilation_cache_dir
    for cache, home in ((None, "/proc/nope"), (None, None), ("/proc/nope", "/"), ("", "/")):
        for name, value in (("ZOOMEARTH_CACHE", cache), ("HOME", home)):
            monkeypatch.delenv(name, raising=False)
            if value is not None:
                monkeypatch.setenv(name, value)
        monkeypatch.setattr("os.getuid", lambda: 2**31 - 5)
        cli._cache_programs()
        assert jax.config.jax_compilation_cache_dir == known


def test_libtpu_is_left_alone_where_there_are_no_tpus(monkeypatch):
    from jax._src import xla_bridge

    for tpus, left in ((False, ["cpu"]), (True, ["cpu", "tpu"])):
        monkeypatch.setattr(xla_bridge, "_backend_factories", {"cpu": 1, "tpu": 2})
        monkeypatch.setattr(tpu_flags, "has_tpus", lambda tpus=tpus: tpus)
        tpu_flags.skip_missing_tpus()
        assert list(xla_bridge._backend_factories) == left


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("libtpu") is None, reason="needs libtpu, which make slow doesn't install; plan's extra does"
)
def test_no_verb_shows_libtpu_s_complaints(tmp_path):
    env = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    process = command("evaluate", "--questions", 8, "--batch-size", 8, env=env, cwd=tmp_path)
    assert process.communicate(timeout=200)[1] == ""
    assert process.returncode == 0


def test_streams_that_are_no_files_stay_as_they_are(monkeypatch):
    page = io.StringIO()  # as a notebook's: without `reconfigure`
    monkeypatch.setattr(sys, "stdout", page)
    monkeypatch.setattr(sys, "stderr", page)
    set_streams()
    print("shown")
    assert sys.stderr is page
    assert page.getvalue() == "shown\n"
