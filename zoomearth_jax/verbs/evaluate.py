"""`zoomearth evaluate`: plays a benchmark's questions, and scores what comes of them."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import tyro
from flax import nnx
from jax.sharding import Mesh

from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.configs.episode import LayoutConfig
from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.configs.io import to_dict
from zoomearth_jax.configs.mesh import MeshConfig
from zoomearth_jax.configs.prune import PruneConfig
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.data_pipeline.images.georeference import Georeference
from zoomearth_jax.data_pipeline.questions.mixture import SCENES
from zoomearth_jax.data_pipeline.rows.builder import RowBuilder
from zoomearth_jax.errors import UserError, suggestion
from zoomearth_jax.evaluation.baselines import CROPS
from zoomearth_jax.evaluation.benchmarks import BENCHMARKS
from zoomearth_jax.evaluation.benchmarks.benchmark import Benchmark, Opened, say_left_out, with_match
from zoomearth_jax.evaluation.benchmarks.official import distinct
from zoomearth_jax.evaluation.benchmarks.questions import Questions
from zoomearth_jax.evaluation.figures import scored
from zoomearth_jax.evaluation.geojson import placed_records, where_items_lie
from zoomearth_jax.evaluation.identity import config_hash, model_identity
from zoomearth_jax.evaluation.record_store import RecordStore, take_folder
from zoomearth_jax.evaluation.records import Item, Record
from zoomearth_jax.evaluation.runner import THUMBNAILS, Runner, guarded, run_summary
from zoomearth_jax.evaluation.table import lines
from zoomearth_jax.files import write_file
from zoomearth_jax.hardware.surroundings import commit, hardware, versions
from zoomearth_jax.models.sharding import process_share
from zoomearth_jax.reports.episodes import write_report
from zoomearth_jax.reports.geojson import check_geojson, write_geojson
from zoomearth_jax.rl.rollout.engine import RolloutEngine
from zoomearth_jax.runs.models import existing, load_model
from zoomearth_jax.runs.start import agreed, lay_out_sampler, on_mesh

MAIN = "shown"  # the way of showing crops whose records lie in the folder itself
SCENE_QUESTIONS = 1024  # procedural ones, where nobody says how many


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Plays questions of a benchmark, or of folders or procedural scenes, and scores the answers.

    Attributes:
        model: `nano-grpo`, a model directory, a run, or ORG/NAME of the Hugging Face hub.
        benchmark: `questions` of own folders and procedural scenes, `lrs-gro`, `mme-realworld-rs`, `xlrs-bench`, `lrs-vqa` or
            `geollava`.
        data: the benchmark's official file, or the folder with it; of `questions` one or several folders with questions.jsonl
            and images, and `scenes`, which is the default.
        image_dir: folder with the images; by default beside the official file.
        images: how image files become 8-bit RGB (bands, stretch, limit).
        limit: at most how many questions, of several folders of each; or how many procedural ones. Left out, all, and 1,024.
        shard: a part of the questions, such as `1/4`, for a machine of its own with an `--out` of its own; `zoomearth score`
            takes the records of all parts together.
        crops: how crops are shown: `shown`; `masked`, grey; `none`, nothing in their place; `oracle`, the reference's window;
            `random`, a window of the same size anywhere. Several are played one after the other; the default is `shown masked` for
            `questions`, and `shown` for benchmarks.
        global_share: share of procedural questions that need no crop.
        sampling: how tokens are drawn.
        compute: number types and backends.
        mesh: how the devices share the work, and how several processes find each other; each plays its share of the questions.
        layout: slots and views other than the model's own, such as `--layout.prompt-len 640` for long questions. `--layout.view-px
            1024 --layout.turn-lens 256` shows one view of 1,024 px and no crop.
        prune: visual tokens that the model goes without.
        match: when a free answer is correct: `exact`, up to case, outer blanks and a final dot; `wordnet`, the paper's, also where
            a word's path similarity is 0.8 or more; `typed`, so for words only, not for numbers, yes and no. Left out, the
            benchmark's own rule.
        batch_size: questions that each process plays at once.
        seed: random seed of the procedural questions and of sampling.
        out: folder for records.jsonl, results.json and report.html; by default runs/eval-NAME of a benchmark, and none of
            `questions`.
        geojson: write the boxes and windows of the first way of `crops`, and the reference boxes, in WGS 84, to this file, and
            those of each CRS of the images to a file beside it.
        resume: go on with the questions that the records in `out` lack.
        overwrite: start anew where `out` holds records.
        strict: stop at the first row or image that can't be read; otherwise it is named, and its questions are left out and
            counted.
        json: print what results.json holds.
    """

    model: str = "nano-grpo"
    benchmark: str = Questions.name
    data: tuple[str, ...] = ()
    image_dir: Path | None = None
    images: tyro.conf.OmitArgPrefixes[ImageConfig] = ImageConfig()
    limit: int | None = None
    shard: str | None = None
    crops: tuple[str, ...] = ()
    global_share: float = Questions.global_share
    sampling: tyro.conf.OmitArgPrefixes[SamplingConfig] = SamplingConfig()
    compute: ComputeConfig = ComputeConfig()
    mesh: MeshConfig = MeshConfig()
    layout: LayoutConfig = LayoutConfig()
    prune: PruneConfig = PruneConfig()
    match: Literal["exact", "wordnet", "typed"] | None = None
    batch_size: int = 256
    seed: int = 0
    out: Path | None = None
    geojson: Path | None = None
    resume: bool = False
    overwrite: bool = False
    strict: bool = False
    json: bool = False

    def __post_init__(self):
        if (self.limit is not None and self.limit < 1) or self.batch_size < 1:
            raise UserError("evaluate: limit and batch_size must be positive")
        if self.benchmark not in BENCHMARKS:
            raise UserError(f"benchmark: {self.benchmark!r} is unknown; {suggestion(self.benchmark, BENCHMARKS)}")
        for name in self.crops:
            if name not in CROPS:
                raise UserError(f"crops: {name!r} is unknown; {suggestion(name, CROPS)}")
        if len(set(self.crops)) < len(self.crops):
            raise UserError(f"crops: {' '.join(self.crops)} names one twice")
        own, where = self.benchmark == Questions.name, BENCHMARKS[self.benchmark].where
        if not own and len(self.data) != 1:
            raise UserError(f"{self.benchmark}: give the official file or its folder by --data; {where}")
        if self.resume and self.overwrite:
            raise UserError("evaluate: resume goes on and overwrite starts anew; choose one")
        _part(self.shard)
        defaults: dict[str, Any] = {"data": (SCENES,), "crops": ("shown", "masked") if own else ("shown",)}
        defaults["out"] = None if own else Path("runs") / f"eval-{self.benchmark}"
        for name, value in defaults.items():
            object.__setattr__(self, name, getattr(self, name) or value)
        if self.resume and self.out is None:
            raise UserError("evaluate: resume needs --out, the folder of the evaluation to go on with")


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Runs the evaluation and prints a table or JSON; returns what results.json holds, or of several processes nothing but in the
    first.

    Raises:
        UserError: what can't be read or written. Where it was the records, and only in the midst, the results have been printed
            before.
    """
    with contextlib.ExitStack() as stack:
        mesh = stack.enter_context(on_mesh(config.mesh, config.model))
        if config.out is None and jax.process_count() > 1:
            raise UserError("evaluate: several processes need --out, a folder that all of them see")
        agreed(lambda: _take(config, stack))
        played, results = _play(config, mesh), {}
        agreed(lambda: results.update(_report(config, played)))
        if played.fault:
            raise UserError(played.fault)
        return results


@dataclasses.dataclass(frozen=True)
class _Played:
    """What was played, by the names of `crops`: records and config hashes; and why records can't be written any more.
    `lie` says where the images of `geojson` lie, by the questions' ids."""

    benchmark: Benchmark
    opened: Opened
    lie: dict[str, Georeference]
    records: dict[str, list[Record]]
    hashes: dict[str, str]
    fault: str


def _take(config: EvaluateConfig, stack: contextlib.ExitStack) -> None:
    """Tries the folder, takes its lock, and refuses records that are there unless told what to do with them."""
    if config.out is None:
        return
    folders = [_folder(config.out, crops) for crops in config.crops]
    take_folder(stack, config.out, folders, config.resume or config.overwrite, "an evaluation")


def _folder(out: Path, crops: str) -> Path:
    return out if crops == MAIN else out / crops


def _part(shard: str | None) -> tuple[int, int]:
    """The first question and the step of a shard, `2/4` -> (1, 4).

    Raises:
        UserError: it isn't written so.
    """
    written = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", "1/1" if shard is None else shard)
    number, count = map(int, written.groups()) if written else (0, 0)
    if not 1 <= number <= count:
        raise UserError(f"shard: {shard!r}; write the part and the number of parts, such as 1/4")
    return number - 1, count


def _open(config: EvaluateConfig) -> tuple[Benchmark, Opened, list[int]]:
    """The benchmark, its questions, and the places of those that are to be played."""
    benchmark = with_match(BENCHMARKS[config.benchmark], config.match)
    if isinstance(benchmark, Questions):
        count = config.limit or SCENE_QUESTIONS
        benchmark = dataclasses.replace(benchmark, seed=config.seed, global_share=config.global_share, count=count)
    opened = [benchmark.open(Path(data), config.image_dir, config.images) for data in config.data]
    faults = [fault for one in opened for fault in one.faults]
    if faults and config.strict:
        raise UserError(f"{faults[0]}; {len(faults):,} rows can't be asked, and without --strict they are left out")
    if jax.process_index() == 0:
        say_left_out(faults)
    items = distinct([item for one in opened for item in one.items])
    items = items if config.strict else guarded(items)
    chosen: list[int] = []
    first = 0
    for one in opened:
        chosen += range(first, first + min(len(one.items), config.limit or len(one.items)))
        first += len(one.items)
    start, step = _part(config.shard)
    return benchmark, Opened(items, faults, sum(one.total for one in opened)), chosen[start::step]


def _play(config: EvaluateConfig, mesh: Mesh) -> _Played:
    benchmark, opened, chosen = _open(config)
    if not chosen:
        raise UserError(f"shard: {config.shard} has none of {len(opened.items):,} questions")
    lie: dict[str, Georeference] = {}
    if (path := config.geojson) is not None:
        agreed(lambda: lie.update(_find(path, [opened.items[place] for place in chosen])))
    model, rows = load_model(config.model, config.compute, mesh, config.layout)
    questions = [item.question for item in opened.items]
    rows = rows.widened(questions) if config.layout.prompt_len is None else rows
    rows = rows.pruned(config.prune)
    rows.check_prompts([questions[place] for place in chosen])
    slots = rows.layout.prompt_len + rows.layout.reply_len
    at_once = config.batch_size * process_share(mesh)[1]
    sampler = lay_out_sampler(config.mesh, mesh, model, slots, at_once, trains=False)
    engine = RolloutEngine(model, rows, mesh, config.mesh.gather, sampler=sampler)
    params = nnx.state(model, nnx.Param)
    runner = Runner(
        engine, params, benchmark.name, opened.items, chosen, config.sampling, config.seed, config.batch_size
    )
    decides = _what_decides(config, rows)
    hashes = {crops: config_hash(crops=crops, **decides) for crops in config.crops}
    if config.overwrite and config.out is not None and jax.process_index() == 0:
        for file in _thumbnails(config):
            file.unlink()
    stores = {}
    for crops in config.crops:
        folder = None if config.out is None else _folder(config.out, crops)
        stores[crops] = RecordStore(folder, opened.items, benchmark.name, hashes[crops])
        stores[crops].begin(config.overwrite)
    records = {}
    for crops, store in stores.items():
        pictured = _folder(config.out, crops) if config.out is not None and crops == config.crops[0] else None
        records[crops] = runner.run(crops, store, pictured)
    return _Played(benchmark, opened, lie, records, hashes, next((s.fault for s in stores.values() if s.fault), ""))


def _find(path: Path, items: Sequence[Item]) -> dict[str, Georeference]:
    """Where the images of questions lie; tries whether the GeoJSON files can be written."""
    lie = where_items_lie(items, "--geojson")
    check_geojson(path, lie.values())
    return lie


def _what_decides(config: EvaluateConfig, rows: RowBuilder) -> dict[str, Any]:
    """All that decides a prediction beside the question, its image and how crops are shown."""
    return {
        "package": versions()["zoomearth-jax"],
        "model": model_identity(existing(config.model)),
        "episode": dataclasses.asdict(rows.episode),
        "prune": dataclasses.asdict(config.prune),
        "sampling": dataclasses.asdict(config.sampling),
        "images": dataclasses.asdict(config.images),
        "dtype": (config.compute.dtype, config.compute.param_dtype),
        "attention": config.compute.attention,
        "benchmark": config.benchmark,
        "seed": config.seed,
    }


def _thumbnails(config: EvaluateConfig) -> list[Path]:
    return [] if config.out is None else sorted(_folder(config.out, config.crops[0]).glob(THUMBNAILS))


def _report(config: EvaluateConfig, played: _Played) -> dict[str, Any]:
    """Writes results.json and report.html, and prints; returns the results.

    Raises:
        UserError: no image could be read, or something can't be written.
    """
    for records in played.records.values():
        if all(record.fault for record in records):
            raise UserError(f"none of the {len(records):,} questions has an image that can be read; {records[0].fault}")
    results = _results(config, played)
    try:
        if played.fault:
            raise UserError(played.fault)
        if config.out is not None:
            write_file(config.out / "results.json", json.dumps(results, indent=2) + "\n")
            _write_page(config, config.out / "report.html", results, played)
        if config.geojson is not None:
            placed = placed_records(played.records[config.crops[0]], played.lie)
            write_geojson(config.geojson, placed, played.lie.values())
    finally:
        counts = results["counts"]
        summaries = {name: run["summary"] for name, run in results["runs"].items()}
        partial = counts["total"] if counts["total"] != counts["scored"] else None
        table = lines(played.benchmark.title, summaries, partial, played.benchmark.published)
        print(json.dumps(results, indent=2) if config.json else "\n".join(table))
    return results


def _write_page(config: EvaluateConfig, path: Path, results: Mapping[str, Any], played: _Played) -> None:
    scores = {name: played.benchmark.score(_read(records)) for name, records in played.records.items()}
    write_report(path, results, played.records, scores, _thumbnails(config))


def _read(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if not record.fault]


def _results(config: EvaluateConfig, played: _Played) -> dict[str, Any]:
    """What results.json holds."""
    without = played.records.get("none", [])
    first = next(iter(played.records))
    return {
        "benchmark": played.benchmark.name,
        "title": played.benchmark.title,
        "config": json.loads(json.dumps(to_dict(config))),  # with JSON's lists
        "config_hash": played.hashes[first],
        "versions": versions(),
        "commit": commit(),
        "seed": config.seed,
        "hardware": hardware(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "counts": {
            "total": played.opened.total,
            "scored": len(_read(played.records[first])),
            "limit": config.limit,
            "unreadable": len(played.records[first]) - len(_read(played.records[first])),
            "refused_rows": len(played.opened.faults),
        },
        "runs": {
            name: {"summary": scored(played.benchmark, records, without if name != "none" else [])}
            | run_summary(records)
            for name, records in played.records.items()
        },
        "published": played.benchmark.published,
    }
