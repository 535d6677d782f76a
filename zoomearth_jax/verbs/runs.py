"""`zoomearth runs`: lists the runs in a folder, compares some of them, and plots their metrics."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Union

import tyro

from zoomearth_jax.configs.io import load_yaml
from zoomearth_jax.errors import UserError, suggestion
from zoomearth_jax.files import check_writable
from zoomearth_jax.runs.listing import METRICS, SETTINGS, SHOWN, best, describe, find_runs, series
from zoomearth_jax.runs.metric_rows import find_rows
from zoomearth_jax.terminal.progress import say
from zoomearth_jax.terminal.tables import table

_PLACES = ("out", "resume", "overwrite")  # settings that differ between any two runs and say nothing


@dataclasses.dataclass(frozen=True)
class ListConfig:
    """Lists the runs in a folder, however deep: kind, model, steps, last metrics, time, state and size.

    Attributes:
        folder: where runs are.
        json: print a JSON array, an object per run, which pandas reads.
    """

    folder: Annotated[Path, tyro.conf.Positional] = Path("runs")
    json: bool = False


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """Compares runs: the settings that differ, and their metrics side by side.

    Attributes:
        runs: directories of runs.
        metric: metrics to show; by default loss, reward_total, reward_answer and validation/accuracy, as far as the runs have them.
        step: show the values at this step too.
        json: print JSON.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    metric: tuple[str, ...] = ()
    step: int | None = None
    json: bool = False

    def __post_init__(self):
        if not self.runs:
            raise UserError("runs compare: name the directories of runs")


@dataclasses.dataclass(frozen=True)
class PlotConfig:
    """Plots metrics of runs over their steps; needs the extra `plot`.

    Attributes:
        runs: directories of runs.
        metric: what to plot, each in a plot of its own.
        out: a .png picture, or an .html page that loads nothing.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    metric: tuple[str, ...] = ("reward_total",)
    out: Path = Path("runs/plot.png")

    def __post_init__(self):
        if not self.runs or not self.metric:
            raise UserError("runs plot: name the directories of runs, and a metric")
        if self.out.suffix.lower() not in (".png", ".html"):
            raise UserError(f"{self.out}: --out writes a .png or .html file")


def list_runs(config: ListConfig) -> list[dict[str, Any]]:
    """Prints the runs and returns them as plain data.

    Raises:
        UserError: no such folder.
    """
    if not config.folder.is_dir():
        raise UserError(f"{config.folder}: no such folder; give one that holds runs")
    found = [describe(run).to_json() for run in find_runs(config.folder)]
    if config.json:
        print(json.dumps(found))
        return found
    if not found:
        say(f"{config.folder}: no runs in it")
        return found
    print(table([_short(run) for run in found]))
    notes = [run for run in found if run["note"]]
    for run in notes[:10]:
        say(f"{run['run']}: {run['note']}")
    if len(notes) > 10:
        say(f"{len(notes) - 10:,} more runs can't be read in full; --json has their notes")
    return found


def _short(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run as a row of the table."""
    done = "" if run["step"] is None else str(run["step"])
    metrics = {name: "" if run[name] is None else run[name] for name in SHOWN}
    hours = f"{run['seconds'] / 3600:.2f}"
    return {
        "run": run["run"],
        "kind": run["kind"],
        "model": run["model"],
        "steps": done if run["steps"] is None else f"{done or 0}/{run['steps']}",
        "state": run["state"],
        **metrics,
        "hours": hours,
        "updated": run["updated"].removesuffix("+00:00").replace("T", " "),
        "MB": f"{run['megabytes']:,.1f}",
    }


def compare_runs(config: CompareConfig) -> dict[str, Any]:
    """Prints the settings that differ and the metrics, and returns both.

    Raises:
        UserError: a directory that is no run, settings that can't be read, or a metric that no run has.
    """
    rows = _rows(config.runs)
    settings = {
        name: _flat(load_yaml(run / SETTINGS)) for name, run in _named(config.runs).items() if (run / SETTINGS).exists()
    }
    names = [name for name in dict.fromkeys(key for one in settings.values() for key in one) if name not in _PLACES]
    differ = {
        name: {run: one.get(name) for run, one in settings.items()}
        for name in names
        if len({json.dumps(one.get(name)) for one in settings.values()}) > 1
    }
    metrics = _figures(rows, _chosen(rows, config.metric), config.step)
    report = {"settings": differ, "metrics": metrics}
    if config.json:
        print(json.dumps(report))
        return report
    told = [{"setting": key, **{run: _text(value) for run, value in values.items()}} for key, values in differ.items()]
    print(table(told) if told else "no settings differ")
    print(table([{k: "" if v is None else v for k, v in row.items()} for row in metrics]) if metrics else "no metrics")
    return report


def plot_runs(config: PlotConfig) -> Path:
    """Writes the plot, prints and returns its path.

    Raises:
        UserError: a directory that is no run, a metric that no run has, matplotlib is missing, or the file can't be written.
    """
    from zoomearth_jax.reports.run_plots import write_plot

    check_writable(config.out)
    rows = _rows(config.runs)
    metrics = _chosen(rows, config.metric)
    drawn = {metric: {run: found for run in rows if (found := series(rows[run], metric))} for metric in metrics}
    for metric, having in drawn.items():
        for run in rows.keys() - having.keys():
            say(f"{run}: has no {metric}")
    write_plot(config.out, drawn, _figures(rows, metrics, None))
    print(config.out)
    return config.out


def _named(runs: Sequence[Path]) -> dict[str, Path]:
    """Runs by the last part of their paths, or by the whole of it where two have the same."""
    last = [run.resolve().name for run in runs]
    return {str(run) if last.count(name) > 1 else name: run for run, name in zip(runs, last, strict=True)}


def _rows(runs: Sequence[Path]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each run's metrics, by its name."""
    found = {}
    for name, run in _named(runs).items():
        if not (run / SETTINGS).is_file() and not (run / METRICS).is_file():
            raise UserError(f"{run}: no run; `zoomearth runs list` names those of a folder")
        found[name], broken = find_rows(run / METRICS)
        if broken:
            say(f"{run}: {broken:,} lines of {METRICS} can't be read; left out")
    return found


def _chosen(rows: Mapping[str, list[dict[str, Any]]], wanted: Sequence[str]) -> list[str]:
    """The metrics that are asked for, by default those of SHOWN that some run has."""
    known = dict.fromkeys(
        key for own in rows.values() for row in own for key in row if key not in ("schema", "step", "alarms")
    )
    for name in wanted:
        if not any(series(own, name) for own in rows.values()):
            raise UserError(f"--metric {name}: no run has it; {suggestion(name, known, 'docs/metrics.md names all')}")
    return list(dict.fromkeys(wanted)) or [name for name in SHOWN if name in known]


def _figures(
    rows: Mapping[str, list[dict[str, Any]]], metrics: Sequence[str], step: int | None
) -> list[dict[str, Any]]:
    """The last and the best value of each metric and run, and that at `step`, where one is given."""
    found = []
    for metric in metrics:
        for run, own in rows.items():
            values = series(own, metric)
            last, top = (values[-1], best(values, metric)) if values else ((None, None), (None, None))
            figures = {"last": last[1], "at": last[0], "best": top[1], "best at": top[0]}
            at = {} if step is None else {f"step {step}": dict(values).get(step)}
            found.append({"metric": metric, "run": run, **figures, **at})
    return found


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    if not isinstance(value, Mapping):
        return {name: value}
    return {key: x for own, item in value.items() for key, x in _flat(item, f"{name}.{own}".strip(".")).items()}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


COMMANDS: dict[str, tuple[type, Callable]] = {
    "list": (ListConfig, list_runs),
    "compare": (CompareConfig, compare_runs),
    "plot": (PlotConfig, plot_runs),
}
_Command: Any = Union[*(Annotated[kind, tyro.conf.subcommand(name)] for name, (kind, _) in COMMANDS.items())]


@dataclasses.dataclass(frozen=True)
class RunsConfig:
    """Lists, compares and plots training runs.

    Attributes:
        command: what to do; `list` by default.
    """

    command: _Command = ListConfig()


def runs(config: RunsConfig):
    """Runs the command."""
    return next(run for kind, run in COMMANDS.values() if isinstance(config.command, kind))(config.command)
