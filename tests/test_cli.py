"""The command itself, in its own process: bad input ends with one line and exit code 2, and writes nothing."""

import os
import subprocess
import sys

import pytest
from PIL import Image

from zoomearth_jax import __version__, cli
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.errors import UserError


def run(*args, cwd):
    """Exit code, standard output and standard error of a verb in a new process."""
    env = os.environ | {"ZOOMEARTH_CACHE": ""}
    done = subprocess.run(
        [sys.executable, "-m", "zoomearth_jax.cli", *map(str, args)],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["ask", "nothing.tif", "Why?"], "nothing.tif: no such image file"),
        (["ask", "text.png", "Why?"], "text.png: not a readable image"),
        (
            ["ask", "image.png", "Why?", "--model", "nowhere"],
            "nowhere: no such model; give a model directory, a run, or one of",
        ),
        (["ask", "image.png", "Why? " * 100], "--layout.prompt-len 511 holds it"),
        (["ask", "image.png", "Why?", "--save", "out.gif"], "--save writes PNG"),
        (["ask", "image.png", "Why?", "--top-p", "0"], "top_p must be between"),
        (["evaluate", "--temperature", "-1"], "temperature must be 0 or"),
        (["pretrain-nano", "--steps", "2"], "more steps than warmup"),
        (["ask", "image.png", "Why?", "--model", "nanno"], "did you mean 'nano'?"),
        (["evaluate", "--model", "empty"], "no config.json"),
        (["sft", "--config", "none.yaml"], "none.yaml: no such file"),
        (["sft", "--config", "bad.yaml"], "bad.yaml: unknown key 'stepz'; did you mean 'steps'?"),
        (["sft", "--config"], "give a YAML file"),
        (["evaluate", "--data", "empty"], "questions.jsonl: no such file"),
        (["evaluate", "--limit", "0"], "must be positive"),
        (["grpo", "--model", "nano", "--group", "1"], "group must be at least 2"),
        (["sft", "--optimizer.lrr", "1"], "perhaps you meant --optimizer.lr"),
        (["sft", "--steps", "many"], "--steps"),
        (["sft", "--resume"], "no run to resume"),
        (["scenes", "--side", "99999"], "side between"),
        (["scenes", "--format", "gif"], "invalid choice 'gif'"),
        (["dance"], "dance"),
        ([], "subcommand"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(args, message, tmp_path, monkeypatch, capsys):
    Image.new("RGB", (64, 64)).save(tmp_path / "image.png")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.yaml").write_text("stepz: 3")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZOOMEARTH_CACHE", "")
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(args) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert said.startswith("zoomearth: ")
    assert "\n" not in said
    assert sorted(tmp_path.rglob("*")) == before  # nothing half-written


def test_the_process_exits_with_2(tmp_path):
    code, out, err = run("ask", "nothing.tif", "Why?", cwd=tmp_path)
    assert (code, out) == (2, "")
    assert err.strip().splitlines()[-1].startswith("zoomearth: nothing.tif")


def test_settings_from_a_file_are_defaults(tmp_path):
    from zoomearth_jax.configs.io import write_yaml
    from zoomearth_jax.configs.training import SFTConfig

    write_yaml(tmp_path / "run.yaml", SFTConfig(steps=7, seed=3))
    parsed = cli._parse(["sft", "--config", str(tmp_path / "run.yaml"), "--seed", "4"], cli._verbs())
    assert parsed == SFTConfig(steps=7, seed=4)


def test_sampling_flags_are_flat(tmp_path):
    (tmp_path / "own.yaml").write_text("sampling: {temperature: 1.0, top_p: 0.5}")
    flags = ["--config", str(tmp_path / "own.yaml"), "--top-k", "5", "--top-p", "0.9", "--repetition-penalty", "1.1"]
    for verb in ("ask", "evaluate"):
        arguments = ["image.png", "Why?"] if verb == "ask" else []
        ours = flags if verb == "evaluate" else ["--temperature", "1", *flags[2:]]
        parsed = cli._parse([verb, *arguments, *ours], cli._verbs())
        assert parsed.sampling == SamplingConfig(temperature=1.0, top_k=5, top_p=0.9, repetition_penalty=1.1)


def test_version_and_help(capsys, monkeypatch):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__
    for verb in cli._verbs():
        assert cli.main([verb, "--help"]) == 0
        assert "--help" in capsys.readouterr().out


def test_interruption_is_not_a_traceback(monkeypatch, capsys):
    from zoomearth_jax.verbs.make_scenes import ScenesConfig

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(
        cli, "_light_verbs", lambda: {"scenes": (ScenesConfig, interrupted), "again": (UserErrorConfig, failing)}
    )
    assert cli.main(["scenes"]) == 130
    assert "interrupted" in capsys.readouterr().err


class UserErrorConfig:
    """A second verb: tyro needs two for subcommands."""


def failing(_):
    raise UserError("never run")


def test_light_verbs_need_no_jax():
    code = "import sys; from zoomearth_jax import cli; cli._light_verbs(); print({'jax', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_an_interrupted_evaluation_says_how_to_go_on(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    assert cli._resume_hint(tmp_path) == ""
    (tmp_path / "records.jsonl").touch()
    assert cli._resume_hint(tmp_path) == "; --resume goes on with the questions that are left"
