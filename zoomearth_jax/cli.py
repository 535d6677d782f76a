"""The `zoomearth` command. Bad input ends with one line on standard error and exit code 2."""

from __future__ import annotations

import sys

from zoomearth_jax.terminal.process import Interrupts, ended, hush_late_writes, in_utf8, set_streams

# All else is imported where it is used, so that a Ctrl-C meets `main` at work and --version stays fast.

_BOX = "╭╮╰╯│─|+ "  # what tyro draws its boxes with
_HELP = (
    "ZoomEarth in JAX: look at an ultra-high-resolution image, zoom, answer; learn where to look. "
    "VERB --config FILE.yaml takes settings from a file, such as a run's run.yaml; sft and grpo also know "
    "--config paper, the paper's run, and --config tuned."
)


def _light_verbs() -> dict:
    """Maps the verbs that run without jax and the models to (config class, function)."""
    from zoomearth_jax.verbs.data import DataConfig, data
    from zoomearth_jax.verbs.make_scenes import ScenesConfig, write_scenes
    from zoomearth_jax.verbs.runs import RunsConfig, runs
    from zoomearth_jax.verbs.tile import TileConfig, tile
    from zoomearth_jax.verbs.tool import ToolConfig, tool

    return {
        "data": (DataConfig, data),
        "runs": (RunsConfig, runs),
        "scenes": (ScenesConfig, write_scenes),
        "tile": (TileConfig, tile),
        "tool": (ToolConfig, tool),
    }


def _verbs() -> dict:
    """Maps all verbs to (config class, function)."""
    from zoomearth_jax.bench import BenchConfig, bench
    from zoomearth_jax.configs.plan import PlanConfig
    from zoomearth_jax.configs.training import GRPOConfig, SFTConfig
    from zoomearth_jax.verbs.ablate import AblateConfig, ablate
    from zoomearth_jax.verbs.ask import AskConfig, ask
    from zoomearth_jax.verbs.convert import ConvertConfig, convert
    from zoomearth_jax.verbs.demo import DemoConfig, demo
    from zoomearth_jax.verbs.evaluate import EvaluateConfig, evaluate
    from zoomearth_jax.verbs.grpo import grpo
    from zoomearth_jax.verbs.plan import plan
    from zoomearth_jax.verbs.pretrain_nano import PretrainNanoConfig, pretrain_nano
    from zoomearth_jax.verbs.report import ReportConfig, report
    from zoomearth_jax.verbs.scan import ScanConfig, scan
    from zoomearth_jax.verbs.score import ScoreConfig, score
    from zoomearth_jax.verbs.serve import ServeConfig, serve
    from zoomearth_jax.verbs.sft import sft

    verbs = {
        "ablate": (AblateConfig, ablate),
        "ask": (AskConfig, ask),
        "bench": (BenchConfig, bench),
        "convert": (ConvertConfig, convert),
        "demo": (DemoConfig, demo),
        "evaluate": (EvaluateConfig, evaluate),
        "grpo": (GRPOConfig, grpo),
        "plan": (PlanConfig, plan),
        "pretrain-nano": (PretrainNanoConfig, pretrain_nano),
        "report": (ReportConfig, report),
        "scan": (ScanConfig, scan),
        "score": (ScoreConfig, score),
        "serve": (ServeConfig, serve),
        "sft": (SFTConfig, sft),
    }
    return dict(sorted((verbs | _light_verbs()).items()))


def _quiet() -> None:
    """Keeps the libraries' chatter off the terminal."""
    import os

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import absl.logging

    absl.logging.set_verbosity(absl.logging.FATAL)  # orbax prints errors that it also raises


def _calm_threads() -> None:
    """Lets each of NumPy's matrix products take one thread; to be called before NumPy is imported. Small products in many threads
    otherwise take eight times as much of the processor, which XLA needs."""
    import os

    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def _cache_programs() -> None:
    """Turns XLA's compilation cache on, where there is a place for it."""
    import os
    from pathlib import Path

    import jax

    from zoomearth_jax.errors import UserError
    from zoomearth_jax.files import check_writable

    try:
        cache = os.environ.get("ZOOMEARTH_CACHE", str(Path("~/.cache/zoomearth_jax").expanduser()))
        if not cache:
            return
        check_writable(cache, directory=True)
    except (RuntimeError, UserError):  # no home, or not to be written: programs compile anew each time
        return
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def _parse(args: list[str], verbs: dict):
    """The config that the arguments describe, `~` expanded; tyro's boxed complaints become one line."""
    import contextlib
    import io
    from typing import Annotated, Any, Union

    import tyro

    from zoomearth_jax.configs.io import at_home
    from zoomearth_jax.errors import UserError

    _check_name("verb", args[:1], verbs)
    if args[:1] == ["bench"]:
        from zoomearth_jax.bench import BENCHMARKS

        _check_name("benchmark", args[1:2], BENCHMARKS)
    if args[:1] == ["data"]:
        from zoomearth_jax.verbs.data import COMMANDS

        _check_name("command", args[1:2], COMMANDS)
    if args[:1] == ["runs"]:
        from zoomearth_jax.verbs.runs import COMMANDS

        _check_name("command", args[1:2], COMMANDS)
    args = [part for arg in args for part in _parts(arg)]
    args, defaults = _read_defaults(args, verbs)
    args, defaults = _take_reward(args, defaults, verbs)
    choices = []
    for name, (config, _) in verbs.items():
        settings = {"description": config.__doc__.splitlines()[0]}
        if name in defaults:
            settings["default"] = defaults[name]
        choices.append(Annotated[config, tyro.conf.subcommand(name, **settings)])
    said, prefixes = io.StringIO(), (tyro.conf.OmitSubcommandPrefixes,)
    try:
        with contextlib.redirect_stderr(said):
            choice: Any = Union[tuple(choices)]  # noqa: UP007
            parsed = tyro.cli(choice, prog="zoomearth", description=_HELP, args=args, config=prefixes)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(_one_line(said.getvalue())) from None
    return at_home(parsed)


def _parts(arg: str) -> list[str]:
    """Splits `--config=FILE` into two arguments; tyro sees to all others."""
    name, equals, value = arg.partition("=")
    return [name, value] if equals and name in ("--config", "--reward") else [arg]


def _check_name(what: str, first: list[str], known) -> None:
    """Refuses an unknown name before tyro does, which suggests none."""

    from zoomearth_jax.errors import UserError, suggestion

    if first and not first[0].startswith("-") and first[0] not in known:
        raise UserError(f"unknown {what} {first[0]!r}; {suggestion(first[0], known)}")


def _read_defaults(args: list[str], verbs: dict) -> tuple[list[str], dict]:
    """Takes `--config FILE` out of a verb's arguments: a YAML file, or one of configs/recipes by its name, whose settings
    replace the verb's defaults."""
    from importlib.resources import files
    from pathlib import Path

    from zoomearth_jax.configs.io import at_home, read_yaml
    from zoomearth_jax.errors import UserError

    if "--config" not in args[1:] or args[0] not in verbs:
        return args, {}
    place = args.index("--config")
    if place + 1 == len(args):
        raise UserError("--config: give a YAML file, such as a run's run.yaml")
    shipped = Path(str(files("zoomearth_jax.configs"))) / "recipes" / f"{args[0]}_{args[place + 1]}.yaml"
    file = shipped if shipped.is_file() else at_home(Path(args[place + 1]))
    return args[:place] + args[place + 2 :], {args[0]: read_yaml(file, verbs[args[0]][0])}


def _take_reward(args: list[str], defaults: dict, verbs: dict) -> tuple[list[str], dict]:
    """Takes `--reward NAME` out of grpo's arguments: a named spec, which replaces the defaults of all --reward.* settings."""
    if args[:1] != ["grpo"] or "--reward" not in args:
        return args, defaults
    import dataclasses

    from zoomearth_jax.configs.reward import SPECS, RewardSpec
    from zoomearth_jax.errors import UserError

    place = args.index("--reward")
    if place + 1 == len(args):
        raise UserError(f"--reward: give the name of a spec: {', '.join(SPECS)}")
    config = defaults.get("grpo") or verbs["grpo"][0]()
    named = dataclasses.replace(config, reward=RewardSpec.named(args[place + 1]))
    return args[:place] + args[place + 2 :], defaults | {"grpo": named}


def _one_line(boxed: str) -> str:
    """What is wrong, and tyro's first suggestion, out of its box of several lines."""
    bare = (line.strip(_BOX).removeprefix("- ").rstrip("- ") for line in boxed.splitlines())
    lines = [line for line in bare if line]
    title, detail = lines[0].rstrip(":"), lines[1] if len(lines) > 1 else ""
    detail += f" {lines[2]}" if detail.endswith(":") else ""
    parts = [detail if detail.startswith(title) or title == "Value error" else f"{title}: {detail}"]
    if "Perhaps you meant:" in lines:
        parts.append("perhaps you meant " + lines[lines.index("Perhaps you meant:") + 1])
    return "; ".join([*parts, "see --help"])


def _run(args: list[str], interrupts: Interrupts | None) -> None:
    """Runs a verb."""
    if args == ["--version"]:
        from zoomearth_jax import __version__

        print(__version__)
        return
    _quiet()
    if args[:1] != ["scenes"]:  # whose products are large
        _calm_threads()
    verbs = _light_verbs() if args[:1] else {}
    if not verbs.keys() & set(args[:1]):
        verbs = _verbs()
        from zoomearth_jax.hardware.tpu_flags import skip_missing_tpus

        skip_missing_tpus()
        if args[:1] != ["plan"]:  # programs for chips that aren't here can't be read back
            _cache_programs()
    config = _parse(args, verbs)
    if interrupts:
        interrupts.at_work = True
        if hasattr(config, "resume"):
            interrupts.hint = lambda: _resume_hint(config.out)
    next(function for kind, function in verbs.values() if isinstance(config, kind))(config)


def _resume_hint(out) -> str:
    if (out / "records.jsonl").exists():
        return "; --resume goes on with the questions that are left"
    known = [place for place in (out / "checkpoints").iterdir() if place.name.isdigit()]
    return "; --resume goes on from the last checkpoint" if known else ""


def main(args: list[str] | None = None) -> int:
    """Runs a verb; returns the exit code: 2 after bad input, 130 after Ctrl-C, 141 where nobody reads on.

    Args:
        args: the arguments; by default those of the command line, and then Ctrl-C and the streams of the process are seen to.
    """
    if args is not None:
        return ended(lambda: _run(args, None))
    in_utf8()
    interrupts = Interrupts()
    set_streams()
    hush_late_writes()
    return ended(lambda: _run(sys.argv[1:], interrupts), interrupts)


if __name__ == "__main__":
    sys.exit(main())
