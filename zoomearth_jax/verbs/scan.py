"""`zoomearth scan IMAGE QUESTION`: one question all over a huge image, window by window."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from flax import nnx
from jax.sharding import Mesh

from zoomearth_jax.configs.compute import ComputeConfig
from zoomearth_jax.configs.episode import LayoutConfig
from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.configs.io import to_dict
from zoomearth_jax.configs.mesh import MeshConfig
from zoomearth_jax.configs.sampling import SamplingConfig
from zoomearth_jax.data_pipeline.images.boxes import Frame
from zoomearth_jax.data_pipeline.images.georeference import Georeference, georeference_of
from zoomearth_jax.data_pipeline.images.image_folder import open_image
from zoomearth_jax.data_pipeline.images.sources import ImageSource, whole
from zoomearth_jax.data_pipeline.rows.builder import RowBuilder
from zoomearth_jax.errors import UserError
from zoomearth_jax.evaluation.identity import config_hash, model_identity
from zoomearth_jax.evaluation.play import Guarded
from zoomearth_jax.evaluation.record_store import RecordStore, take_folder
from zoomearth_jax.evaluation.records import Item, Record
from zoomearth_jax.evaluation.runner import Runner, guarded, run_summary
from zoomearth_jax.evaluation.scanning import Found, grid, hits, image_identity, merged, window_items
from zoomearth_jax.files import write_file
from zoomearth_jax.hardware.surroundings import commit, hardware, versions
from zoomearth_jax.reports.geojson import Placed, check_geojson, write_geojson
from zoomearth_jax.reports.pictures import with_boxes
from zoomearth_jax.rl.rollout.engine import RolloutEngine
from zoomearth_jax.runs.models import existing, load_model
from zoomearth_jax.runs.start import lay_out_sampler, on_mesh
from zoomearth_jax.terminal.progress import say

PICTURE_PX = 2000  # the longest side of the picture
ABSENT = ("no", "none", "nothing", "absent", "not visible", "0", "unanswerable")


@dataclasses.dataclass(frozen=True)
class ScanConfig:
    """Asks one question in every window of a grid over a huge image, and gathers the boxes.

    Attributes:
        image: an image file, however large; or an image of a tile store, as STORE/NAME, or only STORE if it holds one image.
        question: what to ask.
        model: `nano-grpo`, a model directory, a run, or ORG/NAME of the Hugging Face hub.
        out: folder for records.jsonl, results.json, picture.png and, of an image with a georeference, boxes.geojson.
        tile_px: side of a window in px of the image. The model sees each as it sees an image: first an overview, then its crops.
        overlap: share of a window's side that neighbours have in common at least, 0 to 0.9. An object is whole in some window if
            it is no larger than that share.
        merge_iou: boxes that overlap by so much (IoU) are one; it gets the mean of their corners.
        absent: answers that mean that nothing is there, whatever case; windows with them have no box.
        min_windows: boxes that fewer windows named are left out.
        images: how an image file becomes 8-bit RGB (bands, stretch, limit); a tile store's own settings rule.
        sampling: how tokens are drawn.
        compute: number types and backends.
        mesh: how the devices of one process share the work.
        layout: slots and views other than the model's own.
        batch_size: windows that are played at once; changes no prediction.
        seed: random seed of sampling.
        resume: go on with the windows that the records in `out` lack.
        overwrite: start anew where `out` holds records.
        json: print what results.json holds.
    """

    image: Annotated[Path, tyro.conf.Positional]
    question: Annotated[str, tyro.conf.Positional]
    model: str = "nano-grpo"
    out: Path = Path("runs/scan")
    tile_px: int = 2048
    overlap: float = 0.25
    merge_iou: float = 0.3
    absent: tuple[str, ...] = ABSENT
    min_windows: int = 1
    images: tyro.conf.OmitArgPrefixes[ImageConfig] = ImageConfig()
    sampling: tyro.conf.OmitArgPrefixes[SamplingConfig] = SamplingConfig()
    compute: ComputeConfig = ComputeConfig()
    mesh: MeshConfig = MeshConfig()
    layout: LayoutConfig = LayoutConfig()
    batch_size: int = 32
    seed: int = 0
    resume: bool = False
    overwrite: bool = False
    json: bool = False

    def __post_init__(self):
        if self.tile_px < 64 or self.batch_size < 1 or self.min_windows < 1:
            raise UserError("scan: tile_px must be at least 64, batch_size and min_windows positive")
        if not 0 <= self.overlap <= 0.9:
            raise UserError(f"scan: overlap is a share between 0 and 0.9, not {self.overlap}")
        if not 0 < self.merge_iou <= 1:
            raise UserError(f"scan: merge_iou is above 0 and at most 1, not {self.merge_iou}")
        if self.resume and self.overwrite:
            raise UserError("scan: resume goes on and overwrite starts anew; choose one")


def scan(config: ScanConfig) -> dict[str, Any]:
    """Plays all windows, writes what was found, prints a summary, and returns what results.json holds.

    Raises:
        UserError: what can't be read or written.
    """
    began = time.perf_counter()
    image = open_image(config.image, config.images)
    items = window_items(image, str(config.image), config.question, grid(image.frame, config.tile_px, config.overlap))
    where = _where(image)
    with contextlib.ExitStack() as stack:
        mesh = stack.enter_context(on_mesh(config.mesh, config.model, processes=False))
        take_folder(stack, config.out, [config.out], config.resume or config.overwrite, "a scan")
        if where is not None:
            check_geojson(config.out / "boxes.geojson", [where])
        records = _play(config, image, guarded(items), mesh)
        if all(record.fault for record in records):
            raise UserError(f"none of the {len(records):,} windows can be read; {records[0].fault}")
        named = hits(records, image.frame, config.absent)
        found = [one for one in merged(named, config.merge_iou) if one.windows >= config.min_windows]
        results = _results(config, records, len(named), found, time.perf_counter() - began)
        _write(config, image, where, found, results)
    print(json.dumps(results, indent=2) if config.json else _text(results, config.out))
    return results


def _where(image: ImageSource) -> Georeference | None:
    """Where the image lies; None, and a line that says so, where boxes can't be placed on the earth."""
    try:
        where = georeference_of(image)
    except UserError as error:
        say(str(error))
        where = None
    if where is None or not where.crs:
        say("the image has no georeference with a CRS: boxes are in px of it, in results.json alone")
        return None
    return where


def _play(config: ScanConfig, image: ImageSource, items: Sequence[Item], mesh: Mesh) -> list[Record]:
    model, rows = load_model(config.model, config.compute, mesh, config.layout)
    questions = [item.question for item in items]
    rows = rows.widened(questions[:1]) if config.layout.prompt_len is None else rows
    rows.check_prompts(questions[:1])  # windows are all of one size
    slots = rows.layout.prompt_len + rows.layout.reply_len
    sampler = lay_out_sampler(config.mesh, mesh, model, slots, config.batch_size, trains=False)
    engine = RolloutEngine(model, rows, mesh, config.mesh.gather, sampler=sampler)
    store = RecordStore(config.out, items, "scan", config_hash(**_what_decides(config, image, rows)))
    store.begin(config.overwrite)
    runner = Runner(
        engine,
        nnx.state(model, nnx.Param),
        "scan",
        items,
        range(len(items)),
        config.sampling,
        config.seed,
        config.batch_size,
        label="scan",
    )
    records = runner.run("shown", store)
    if store.fault:
        raise UserError(f"{store.fault}; --resume goes on from it")
    return records


def _what_decides(config: ScanConfig, image: ImageSource, rows: RowBuilder) -> dict[str, Any]:
    """All that decides what the model says of a window."""
    return {
        "package": versions()["zoomearth-jax"],
        "model": model_identity(existing(config.model)),
        "episode": dataclasses.asdict(rows.episode),
        "sampling": dataclasses.asdict(config.sampling),
        "images": dataclasses.asdict(config.images),
        "dtype": (config.compute.dtype, config.compute.param_dtype),
        "attention": config.compute.attention,
        "image": image_identity(image),
        "grid": (config.tile_px, config.overlap),
        "seed": config.seed,
    }


def _results(config: ScanConfig, records: Sequence[Record], named: int, found: Sequence[Found], seconds: float) -> dict:
    return {
        "image": str(config.image),
        "question": config.question,
        "model": config.model,
        "counts": {
            "windows": len(records),
            "unreadable": sum(bool(record.fault) for record in records),
            "named": named,
            "boxes": len(found),
        },
        "boxes": [one.to_json() for one in found],
        "seconds": round(seconds, 2),
        **run_summary(records),
        "config": json.loads(json.dumps(to_dict(config))),  # with JSON's lists
        "config_hash": records[0].config,
        "versions": versions(),
        "commit": commit(),
        "hardware": hardware(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _write(
    config: ScanConfig, image: ImageSource, where: Georeference | None, found: Sequence[Found], results: dict
) -> None:
    write_file(config.out / "results.json", json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    if where is not None:
        known = {"image": str(config.image), "question": config.question, "model": config.model}
        placed = [
            Placed(one.box, where, {**known, **{k: v for k, v in one.to_json().items() if k != "box"}}) for one in found
        ]
        write_geojson(config.out / "boxes.geojson", placed, [where])
    scale = min(1.0, PICTURE_PX / max(image.frame.width, image.frame.height))
    size = Frame(*(max(1, round(side * scale)) for side in (image.frame.width, image.frame.height)))
    overview = Guarded(image)
    picture = with_boxes(overview.window(whole(image), size), [(one.box, "predicted") for one in found])
    if overview.fault:
        say(f"the picture is grey, since parts of the image can't be read; {overview.fault}")
    write_file(config.out / "picture.png", lambda path: picture.save(path, format="PNG"))


def _text(results: dict, out: Path) -> str:
    counts, answers = results["counts"], dict[str, int]()
    for box in results["boxes"]:
        answers[box["answer"]] = answers.get(box["answer"], 0) + 1
    unreadable = f", {counts['unreadable']:,} of them unreadable" if counts["unreadable"] else ""
    lines = [
        f"{counts['windows']:,} windows{unreadable}, {counts['named']:,} with a box, merged into {counts['boxes']:,}"
    ]
    lines += [f"{count:6,}  {answer[:80]}" for answer, count in sorted(answers.items(), key=lambda pair: -pair[1])]
    return "\n".join([*lines, f"{results['seconds']:.1f} s; {out} has boxes, picture and records"])
