"""`zoomearth report`: the page of a finished evaluation made anew, the page that compares two, or that of a run's rollouts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import tyro

from zoomearth_jax.errors import UserError, suggestion
from zoomearth_jax.evaluation.benchmarks import BENCHMARKS
from zoomearth_jax.evaluation.predictions import read_predictions
from zoomearth_jax.files import check_writable
from zoomearth_jax.reports.episode_rows import Evaluated
from zoomearth_jax.reports.episodes import write_comparison, write_report
from zoomearth_jax.reports.rollout_page import write_rollout_page
from zoomearth_jax.reports.rollouts import FOLDER
from zoomearth_jax.terminal.progress import say

MAIN = "shown"  # the way of showing crops whose records lie in the folder itself


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """Makes the page of a finished evaluation anew from its records, without the model, compares two, or shows a run's rollouts.

    Attributes:
        run: folder that `zoomearth evaluate --out` wrote, or a run of `zoomearth grpo --dump N`.
        other: a second one of the same benchmark, which is compared with the first question by question.
        out: the page; left out, report.html, or for a comparison comparison.html, or for a run's rollouts rollouts.html, in the
            folder of the first.
        steps: the first and the last step of a run whose rollouts are shown; all by default.
        max_mb: about how large the page may be; questions beyond that go without thumbnails.
    """

    run: Annotated[Path, tyro.conf.Positional]
    other: Annotated[Path | None, tyro.conf.Positional] = None
    out: Path | None = None
    steps: tuple[int, int] | None = None
    max_mb: float = 64.0

    def __post_init__(self):
        if not 0 < self.max_mb <= 2000:
            raise UserError(f"--max-mb {self.max_mb}: must be above 0 and at most 2000")


def report(config: ReportConfig) -> Path:
    """Writes the page, prints and returns its path.

    Raises:
        UserError: a folder holds no evaluation, the two are of different benchmarks or share no question, or the page can't
            be written.
    """
    if (config.run / FOLDER).is_dir():
        return _rollouts(config)
    if config.steps:
        raise UserError(f"{config.run}: --steps is for runs with rollouts of `grpo --dump N`; there are none")
    out = config.out or config.run / ("comparison.html" if config.other else "report.html")
    check_writable(out)
    first = read_evaluation(config.run)
    size = int(config.max_mb * 1e6)
    if config.other is None:
        write_report(out, *first, max_bytes=size)
    else:
        second = read_evaluation(config.other)
        _check_comparable(config, first, second)
        write_comparison(out, first, second, _names(config.run, config.other), size)
    print(out)
    return out


def _rollouts(config: ReportConfig) -> Path:
    if config.other:
        raise UserError(f"{config.run}: a run; only evaluations are compared, give one folder")
    out = config.out or config.run / "rollouts.html"
    check_writable(out)
    write_rollout_page(out, config.run, config.steps, int(config.max_mb * 1e6))
    print(out)
    return out


def read_evaluation(directory: Path) -> Evaluated:
    """A folder that an evaluation wrote, its records scored anew; a row that can't be read is named and left out.

    Raises:
        UserError: it holds none, or what it holds can't be read.
    """
    results = _results(directory / "results.json")
    name = str(results.get("benchmark"))
    if name not in BENCHMARKS:
        raise UserError(f"{directory / 'results.json'}: unknown benchmark {name!r}; {suggestion(name, BENCHMARKS)}")
    names = sorted(results.get("runs") or {MAIN: {}}, key=lambda crops: crops != MAIN)
    folders = {crops: directory if crops == MAIN else directory / crops for crops in names}
    if MAIN not in folders and not (directory / names[0]).is_dir():  # the only way of showing crops
        folders[names[0]] = directory
    records = {}
    for crops, folder in folders.items():
        read = read_predictions([folder / "records.jsonl"], name)
        records[crops] = read.records
        for fault in read.faults:
            say(f"{folder}: {fault}; left out")
    scores = {crops: BENCHMARKS[name].score([r for r in own if not r.fault]) for crops, own in records.items()}
    return Evaluated(results, records, scores, sorted(folders[names[0]].glob("thumbnails*.jsonl")))


def _results(path: Path) -> dict[str, Any]:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path}: can't be read ({error.strerror or error}); give a folder of `evaluate --out`"
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); run `zoomearth evaluate` again") from None
    if not isinstance(results, dict) or not isinstance(results.get("runs") or {}, dict):
        raise UserError(f"{path}: not the results of an evaluation; give a folder of `evaluate --out`")
    return results


def _check_comparable(config: ReportConfig, a: Evaluated, b: Evaluated) -> None:
    names = [run.results["benchmark"] for run in (a, b)]
    if names[0] != names[1]:
        raise UserError(f"{config.run} is of {names[0]}, {config.other} of {names[1]}; give two of the same benchmark")
    ids = [{record.id for record in run.records[run.main]} for run in (a, b)]
    if not ids[0] & ids[1]:
        raise UserError(f"{config.run} and {config.other} have no question in common; give two of the same questions")


def _names(a: Path, b: Path) -> tuple[str, str]:
    """The folders' names, or their paths where the names are the same.

    Raises:
        UserError: they are the same folder.
    """
    if a.resolve() == b.resolve():
        raise UserError(f"{a}: given twice; give two evaluations to compare")
    short = a.resolve().name, b.resolve().name
    return short if short[0] != short[1] else (str(a), str(b))
