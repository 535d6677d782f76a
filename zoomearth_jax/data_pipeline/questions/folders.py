"""The questions of folders: read, judged, and opened with their images."""

from __future__ import annotations

import collections
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from zoomearth_jax.configs.images import ImageConfig
from zoomearth_jax.data_pipeline.images.image_folder import ImageFolder
from zoomearth_jax.data_pipeline.questions.folder_rows import UNREADABLE, Judged, OpenImages, Problem, judge
from zoomearth_jax.data_pipeline.questions.geo_eyes import find_chains, read_chains
from zoomearth_jax.data_pipeline.questions.lrs_gro import SPLITS as RELEASED_SPLITS
from zoomearth_jax.data_pipeline.questions.lrs_gro import to_row
from zoomearth_jax.data_pipeline.questions.lrs_gro_files import (
    WHERE_FROM,
    Read,
    find_all,
    find_rows,
    find_split,
    images_of,
)
from zoomearth_jax.data_pipeline.questions.own_rows import NAME, read_own_rows
from zoomearth_jax.data_pipeline.questions.question import Question
from zoomearth_jax.data_pipeline.questions.records import refuse
from zoomearth_jax.errors import UserError

OWN = "questions"  # the one split of a folder with questions.jsonl or UHR-CoZ.json


def read_questions(
    directory, split: str | None = None, images: ImageConfig = ImageConfig(), strict: bool = False
) -> list[Question]:
    """The questions of a folder, as training and evaluation take them, with their images (`ImageFolder` says where those are).

    Three forms: questions.jsonl, one split whatever `split` says (see `own_rows`); likewise the chains of zooms of GeoEyes in
    UHR-CoZ.json (see `geo_eyes`); or the rows of LRS-GRO (see `lrs_gro_files.find_rows`), where a single file or saved folder
    will do as well. Rows that are left out are counted on standard error.

    Args:
        split: sft, grpo or test, the names of SPLITS; LRS-GRO needs it. Its own name for grpo, rl, is taken too.
        images: how image files are read.
        strict: refuse images that can't be read, instead of leaving their rows out.

    Raises:
        UserError: nothing there, or anything that `folder_rows.judge` refuses: how many faults, and the first.
    """
    judged = judge_split(directory, split, images)
    refuse(directory, [str(problem) for problem in judged.of_effect("refused")])
    broken = [str(problem) for problem in judged.problems if problem.kind == UNREADABLE]
    refuse(directory, broken if strict else [])
    for said in broken[:20]:
        print(f"{directory}: {said}", file=sys.stderr)
    if left_out := judged.of_effect("left out"):
        kinds = collections.Counter(problem.kind for problem in left_out)
        no_rows = len({problem.where for problem in left_out} - {row.where for row in judged.rows})
        total = len(judged.rows) + no_rows
        count = f"{total - len(judged.taken):,} of {total:,} rows are left out"
        why = ", ".join(f"{kind}: {number:,}" for kind, number in kinds.items())
        print(f"{directory}: {count} ({why}); `zoomearth data check` lists them", file=sys.stderr)
    return [question for _, question in judged.taken]


def judge_split(directory, split: str | None, images: ImageConfig = ImageConfig()) -> Judged:
    """A folder's split, judged; arguments as of `read_questions`.

    Raises:
        UserError: nothing there, or what is there can't be read at all.
    """
    with _readable(directory) as path:
        if is_own(path):
            return _judge_own(path, images)
        if chains := find_chains(path):
            return _judge_chains(chains, images)
        released = "rl" if split == "grpo" else split
        if released is None or find_rows(path, released) is None:
            raise UserError(_nothing_there(path, split, released))
        return _judge_released(released, find_split(path, released), _open(path, images))


def judge_all(directory, images: ImageConfig = ImageConfig(), seen: Callable = iter) -> dict[str, Judged]:
    """All splits of a folder, judged; questions.jsonl and UHR-CoZ.json are the one split OWN.

    Args:
        seen: wraps the rows of a split as they are gone through, for a progress bar.

    Raises:
        UserError: as of `judge_split`.
    """
    with _readable(directory) as path:
        if is_own(path):
            return {OWN: _judge_own(path, images, seen)}
        if chains := find_chains(path):
            return {OWN: _judge_chains(chains, images, seen)}
        opened = _open(path, images)  # splits share images
        return {split: _judge_released(split, read, opened, seen) for split, read in find_all(path).items()}


def is_own(path: Path) -> bool:
    """Whether a path is a folder with questions.jsonl, whatever that is, or such a file."""
    return path.name == NAME or os.path.lexists(path / NAME)


@contextlib.contextmanager
def _readable(directory) -> Iterator[Path]:
    """The folder; what the system says against looking at it becomes the user's error."""
    try:
        yield Path(directory)
    except OSError as error:
        raise UserError(f"{str(directory)[:200]}: can't be read ({error.strerror or error})") from None


def _open(path: Path, images: ImageConfig) -> OpenImages:
    return OpenImages(ImageFolder(images_of(path), images))


def _judge_own(path: Path, images: ImageConfig, seen: Callable = iter) -> Judged:
    folder = path.parent if path.name == NAME and not path.is_dir() else path
    rows, faults = read_own_rows(folder)
    return judge(rows, faults, _open(folder, images), drop_unreasoned=False, seen=seen)


def _judge_chains(file: Path, images: ImageConfig, seen: Callable = iter) -> Judged:
    rows, faults = read_chains(file)
    return judge(rows, faults, _open(file.parent, images), drop_unreasoned=False, seen=seen)


def _judge_released(split: str, read: Read, images: OpenImages, seen: Callable = iter) -> Judged:
    """Judges LRS-GRO's rows. Fine-tuning rows without reasoning are left out where others have it: the last 11 of the released
    1,011, so that the paper's 1,000 remain."""
    rows = [to_row(row, where) for where, row in read.rows]
    faults = [Problem(said, "refused", where) for where, said in read.faults]
    return judge(rows, faults, images, drop_unreasoned=split == "sft", seen=seen)


def _nothing_there(path: Path, split: str | None, released: str | None) -> str:
    if split is None and any(find_rows(path, name) for name in RELEASED_SPLITS):
        return f"{path}: holds LRS-GRO; say which split: {', '.join(RELEASED_SPLITS)}"
    rows = f"rows of LRS-GRO for split {released}" if released else "rows of LRS-GRO"
    return (
        f"{path / NAME}: no such file (`zoomearth scenes --out {path}` writes an example), and no {rows} in that folder. "
        f"{WHERE_FROM}"
    )
