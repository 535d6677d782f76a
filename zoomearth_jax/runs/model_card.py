"""The model card of an exported model: what it is, how it was trained, and what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from zoomearth_jax import __version__
from zoomearth_jax.configs.io import load_yaml, read_json, to_dict
from zoomearth_jax.configs.training import GRPOConfig, SFTConfig
from zoomearth_jax.runs.hub import is_hub_name
from zoomearth_jax.runs.listing import METRICS, SETTINGS, SHOWN, describe, series
from zoomearth_jax.runs.metric_rows import find_rows
from zoomearth_jax.runs.saved_steps import numbers

_VERBS = {"sft": SFTConfig, "grpo": GRPOConfig}
_PLACES = ("out", "resume", "overwrite")
_ALSO = ("reward_iou", "iou", "zoom_rate")  # metrics beside those of a list of runs and of the validation


def model_card(name: str, source: Path, step: int | None = None) -> str:
    """The text of README.md, with the hub's metadata.

    Args:
        name: OWNER/NAME of the hub.
        source: the run or model directory that is exported.
        step: the step of a run; its last one by default.
    """
    run = (source / SETTINGS).exists()
    settings = load_yaml(source / SETTINGS) if run else {}
    base = str(settings.get("model", "")) if run else str(source)
    kind = str(read_json(source / "config.json").get("model_type"))
    head: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "image-text-to-text"}
    if is_hub_name(base):
        head["base_model"] = base
    head["tags"] = ["zoomearth_jax", "remote-sensing"]
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {name.partition('/')[2]}",
        f"A vision-language model ({_code(kind)}) for satellite images of any size: it looks at an overview, names a box, sees the "
        "box at full resolution, and answers. `episode.json` has the words and sizes that it works with. Exported by "
        f"zoomearth_jax {__version__}.",
        f'```\nzoomearth ask image.tif "How many ships are there?" --model {name}\n```',
        *(
            _training(source, settings, step)
            if run
            else [f"## Origin\n\nConverted from {_code(source.resolve().name)}."]
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _training(source: Path, settings: dict[str, Any], step: int | None) -> list[str]:
    """How a run was trained, and its metrics up to the step."""
    about = describe(source)
    step = max(numbers(source / "checkpoints"), default=about.step) if step is None else step
    kind = about.kind if about.kind in _VERBS else ""
    default = json.loads(json.dumps(to_dict(_VERBS[kind]()))) if kind else {}
    changed = {key: value for key, value in _changed(settings, default).items() if key not in _PLACES}
    text = yaml.safe_dump(changed, sort_keys=False, allow_unicode=True)
    done = f"{step} of {about.steps} steps" if about.steps else f"{step} steps"
    command = f", with `zoomearth {kind} --config settings.yaml`" if kind else ""
    told = "settings.yaml, which has what differs from the defaults:"
    block = "\n".join(f"    {line}" for line in text.splitlines())
    return [
        f"## Training\n\nTrained from {_code(about.model)} for {done}{command}; {told}",
        block,
        *_metrics(source, step),
    ]


def _metrics(source: Path, step: int | None) -> list[str]:
    """The last values of what a run measured up to a step, as a table; nothing where it measured nothing."""
    rows = [row for row in find_rows(source / METRICS).rows if step is None or row["step"] <= step]
    names = dict.fromkeys(name for row in rows for name in row)
    wanted = [name for name in names if name in (*SHOWN, *_ALSO) or name.startswith("validation/")]
    last = {name: values[-1] for name in wanted if (values := series(rows, name))}
    if not last:
        return []
    lines = [f"| {_code(name)} | {value:.4g} | {at} |" for name, (at, value) in last.items()]
    return [
        "## Metrics\n\nThe run's last measurements. Those of `validation/` are of held-out questions, others of the step's own.",
        "\n".join(["| metric | value | step |", "|---|---|---|", *lines]),
    ]


def _changed(settings: dict[str, Any], default: Any) -> dict[str, Any]:
    """The part of nested settings that isn't as in `default`."""
    known = default if isinstance(default, dict) else {}
    differ = {key: value for key, value in settings.items() if key not in known or known[key] != value}
    return {key: _changed(x, known.get(key)) if isinstance(x, dict) else x for key, x in differ.items()}


def _code(text: str) -> str:
    """A text as code within a line of Markdown."""
    return "`" + " ".join(text.replace("`", "'").replace("|", "/").split()) + "`"
