"""What can't be written is said before the work, what is written comes whole, and a directory has one writer at a time."""

import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from zoomearth_jax.errors import UserError
from zoomearth_jax.files import Lock, check_writable, staged_model, write_file, writing


@contextmanager
def files_up_to(size):
    """As if the disk were full: no file grows beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def places(tmp_path):
    """A folder with what may stand in the way."""
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "circle").symlink_to("circle")
    return tmp_path


def tree(folder):
    return sorted(str(path) for path in folder.rglob("*"))


NEVER = ["file/x", "file/x/y", "n" * 300, "a/" + "n" * 300, "circle", "circle/x"]


@pytest.mark.parametrize("name", [*NEVER, "folder", "/proc/x", "/dev/full"])
def test_files_that_can_t_be_written(name, places):
    before = tree(places)
    with pytest.raises(UserError, match=r"can't be written \("):
        check_writable(places / name)
    with pytest.raises(UserError, match=r"can't be written \("):
        write_file(places / name, "text")
    assert tree(places) == before
    assert (places / "file").read_text() == "kept"


@pytest.mark.parametrize("name", [*NEVER, "file", "dangling", "dangling/x", "/proc/x/y"])
def test_directories_that_can_t_be_written(name, places):
    before = tree(places)
    with pytest.raises(UserError, match=r"can't be written \(") as error:
        check_writable(places / name, directory=True)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"can't be written \("):
        Lock(places / name, "busy")
    assert tree(places) == before


def test_a_try_leaves_nothing_and_a_full_disk_is_noticed(places):
    before = tree(places)
    for name in ("new", "a/b/c", "file", "dangling"):
        check_writable(places / name)
    for name in ("new", "a/b/c", "folder", "."):
        check_writable(places / name, directory=True)
    with files_up_to(100):
        for directory in (False, True):
            with pytest.raises(UserError, match="File too large"):
                check_writable(places / "a/b", directory)
    assert tree(places) == before


def test_a_file_comes_whole_or_stays(places):
    write_file(places / "a/b", "é\udcff")
    assert (places / "a/b").read_bytes() == b"\xc3\xa9\\udcff"
    with files_up_to(100), pytest.raises(UserError, match="file: can't be written"):
        write_file(places / "file", b"x" * 1000)
    assert (places / "file").read_text() == "kept"
    write_file(places / "dangling", b"through the link")
    assert (places / "dangling").is_symlink()
    assert (places / "nowhere").read_bytes() == b"through the link"
    assert not list(places.rglob("*.partial"))
    write_file(os.devnull, "nothing")
    assert not Path(os.devnull).is_file()


def test_what_libraries_in_rust_say_of_a_full_disk(tmp_path):
    with pytest.raises(UserError, match="No space left"), writing(tmp_path):
        raise Exception("No space left on device (os error 28)")
    with pytest.raises(ValueError, match="a bug"), writing(tmp_path):
        raise ValueError("a bug")


def test_a_model_directory_that_fails_leaves_the_old_one(tmp_path):
    (tmp_path / "config.json").write_text("old")
    for folder in (tmp_path, tmp_path / "new" / "er"):
        with files_up_to(10), pytest.raises(UserError, match="File too large"), staged_model(folder) as staging:
            (staging / "config.json").write_text("x" * 100)
    assert tree(tmp_path) == [str(tmp_path / "config.json")]
    assert (tmp_path / "config.json").read_text() == "old"


HOLDER = """
import sys
from zoomearth_jax.files import Lock
lock = Lock(sys.argv[1], "busy")
print("held", flush=True)
sys.stdin.read()
"""


def test_a_directory_has_one_writer_and_a_killed_one_s_lock_goes_with_it(tmp_path):
    folder = tmp_path / "a" / "b"
    with Lock(folder, "busy"), pytest.raises(UserError, match=r"^busy$"):
        Lock(folder, "busy")
    assert not (tmp_path / "a").exists()
    command = [sys.executable, "-c", HOLDER, folder]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=r"^busy$"):
            Lock(folder, "busy")
        holder.kill()
        holder.wait()
    with Lock(folder, "busy"):
        assert (folder / ".lock").exists()
    assert not list(folder.iterdir())
