"""Files and directories that are complete or visibly not there, and what can be said before anything is written."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from zoomearth_jax.errors import UserError

SIDE_FILES = (  # of a published checkpoint, that say how text and pictures become its inputs
    "tokenizer*",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template*",
    "*processor_config.json",
    "generation_config.json",
    "episode.json",
)
_PROBE = b"\0" * 4096  # a full disk may still take an empty file
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL)  # of file systems that know none


@contextlib.contextmanager
def writing(path) -> Iterator[None]:
    """Turns what the system says against writing into one line that names `path`.

    Raises:
        UserError: in place of an OSError, or of a path that no file can have.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: can't be written ({error.strerror or error})") from None
    except Exception as error:
        if "(os error " not in str(error):  # by which libraries in Rust tell what the system told them
            raise
        raise UserError(f"{path}: can't be written ({error})") from None


def check_writable(path, directory: bool = False) -> None:
    """Tries whether a file, or a directory with files in it, can be written there; leaves nothing behind.

    To be called before work whose results would be lost. Missing parents are no fault, they will be made.

    Args:
        directory: whether `path` is to be a directory.

    Raises:
        UserError: something else is in its place, or the disk is full or may not be written.
    """
    with writing(path):
        path = Path(path)
        if directory:
            _probe(path)
        elif _in_place(path):
            _try_device(path)
        else:
            target = _target(path)
            _probe(target.parent, _partial(target).name)


def write_file(path, content: str | bytes | Callable[[Path], None]) -> None:
    """Writes a file whole or not at all: beside its place, then renamed; missing parents are made.

    What is no ordinary file, such as /dev/stdout, is written in place; a link stays, its target is written.

    Args:
        content: text, which becomes UTF-8 (what isn't valid there as an escape), bytes, or what writes to the path it is given.

    Raises:
        UserError: it can't be written; what was there stays.
    """
    if isinstance(content, str):
        content = content.encode("utf-8", "backslashreplace")
    path = Path(path)
    with writing(path):
        if _in_place(path):
            _fill(path, content)
            return
        target = _target(path)
        made = _make(target.parent)
        try:
            _fill(_partial(target), content)
            _partial(target).replace(target)
        finally:
            with contextlib.suppress(OSError):
                _partial(target).unlink()
            remove_empty(made)


def _fill(path: Path, content: bytes | Callable[[Path], None]) -> None:
    if callable(content):
        content(path)
    else:
        with open(path, "wb") as file:
            file.write(content)


def _in_place(path: Path) -> bool:
    """Whether something is there that a rename would destroy: a device or a pipe."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "is a directory")
        return not stat.S_ISREG(mode)
    return False


def _try_device(path: Path) -> None:
    """Writes a few zeros to a device, such as /dev/full, but not to a terminal or a pipe, which show them."""
    with open(path, "wb", buffering=0) if stat.S_ISCHR(path.stat().st_mode) else contextlib.nullcontext() as device:
        if device and not device.isatty():
            device.write(_PROBE)


def _target(path: Path) -> Path:
    """Where a path leads: links are followed, also one whose target isn't there yet."""
    try:
        return path.resolve()
    except RuntimeError as error:  # links in a circle, until Python 3.13
        raise OSError(errno.ELOOP, str(error)) from None


def _partial(target: Path) -> Path:
    return target.with_name(f"{target.name}.partial")


def _probe(folder: Path, name: str = ".probe.partial") -> None:
    """Makes the folder if it isn't there and a file in it, and removes both."""
    made = _make(folder)
    file = folder / name
    try:
        file.write_bytes(_PROBE)
    finally:
        with contextlib.suppress(OSError):
            file.unlink()
        remove_empty(made)


def _make(folder: Path) -> list[Path]:
    """Makes a directory; gives those that weren't there, the innermost first."""
    missing = []
    for place in (folder, *folder.parents):
        if place.exists():
            break
        missing.append(place)
    made: list[Path] = []
    try:
        for place in reversed(missing):
            place.mkdir()
            made.insert(0, place)
    except OSError as error:
        remove_empty(made)
        if isinstance(error, FileExistsError) and not place.exists():
            raise OSError(errno.ENOENT, "a link to what isn't there") from None
        raise
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "no folder but a file is there")
    return made


def remove_empty(folders: list[Path]) -> None:
    """Removes directories, the innermost first, as far as they are empty."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


class Lock:
    """The only writer of a directory. A killed one's lock goes with it.

    Use as a context manager around the work; it leaves nothing behind. File systems that know no locks are taken on trust.
    """

    def __init__(self, directory, refusal: str):
        """Takes the lock, and makes the directory where there is none.

        Raises:
            UserError: `refusal`, where another process holds it; or the directory can't be written.
        """
        self.path = Path(directory) / ".lock"
        self._file: TextIO
        with writing(directory):
            self._made = _make(Path(directory))
            try:
                self._take()
            except BlockingIOError:
                raise UserError(refusal) from None
            except OSError:
                remove_empty(self._made)
                raise

    def _take(self) -> None:
        while True:
            self._file = open(self.path, "a")  # noqa: SIM115
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    self._file.close()
                    raise
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._file.fileno()), os.stat(self.path)):
                    return
            self._file.close()  # its last holder removed it in between

    def release(self) -> None:
        """Gives the lock back; a second time does nothing."""
        if not self._file.closed:
            with contextlib.suppress(OSError):
                self.path.unlink()
            self._file.close()
            remove_empty(self._made)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.release()


def is_locked(directory) -> bool:
    """Whether a process holds the `Lock` of a directory, as far as the file system tells."""
    with (
        contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError),
        open(Path(directory) / ".lock") as file,
    ):
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
    return False


@contextlib.contextmanager
def staged_model(directory, owner: bool = True) -> Iterator[Path]:
    """Writes a model directory so that an interruption leaves nothing that looks complete.

    Yields a folder inside `directory` to write to. At the end its files move up: config.json, without which nothing is a
    model directory, goes first of the old ones and comes last of the new ones; old weights and
    SIDE_FILES go before new ones come. Other files stay. After an exception or a kill an older model is still whole, or
    config.json is missing; a folder that was made for it and is empty goes again.

    Args:
        directory: made if it isn't there.
        owner: whether this process writes; of several, one does, and the others only pass through.

    Raises:
        UserError: the directory can't be made or written.
    """
    directory = Path(directory)
    staging = directory / ".partial"
    if not owner:
        yield staging
        return
    with writing(directory):
        made = _make(directory)
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            yield staging
            (directory / "config.json").unlink(missing_ok=True)
            for pattern in ("*.safetensors", "*.safetensors.index.json", *SIDE_FILES):
                for old in directory.glob(pattern):
                    if not old.is_dir():
                        old.unlink()
            move_up(staging, last="config.json")
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            remove_empty(made)


def move_up(staging: Path, last: str) -> None:
    """Moves what a folder holds into the folder around it, in place of what has the same names; `last` comes last."""
    for file in sorted(staging.iterdir(), key=lambda f: f.name == last):
        place = staging.parent / file.name
        if file.is_dir() and not place.is_symlink():
            shutil.rmtree(place, ignore_errors=True)
        file.replace(place)
