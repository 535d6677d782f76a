"""Runs the commands of the pages and writes what they print below them: `python docs/outputs.py [PAGE.md ...]`.

In a block of kind `console` a line that begins with `$ ` is a command of bash, and what follows it is its standard output. The
commands of a page run one after the other in a new folder; one that fails ends the run, and the page stays as it was. A comment
`<!-- picture: FILE -> NAME -->` copies a picture that they have made into this folder.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).resolve().parent
PAGES = ("tutorial.md", "training.md")
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PICTURE = re.compile(r"<!-- picture: (\S+) -> (\S+) -->")


def commands(page: str) -> list[str]:
    """The commands of a page, in their order; one that ends in a backslash goes on in the next line."""
    return [command for block in BLOCK.findall(page) for command in _commands(block)]


def _commands(block: str) -> list[str]:
    found: list[str] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append(line[2:])
        elif found and found[-1].endswith("\\"):
            found[-1] += "\n" + line
    return found


def run(command: str, folder: Path) -> str:
    """What a command prints on standard output."""
    env = os.environ | {
        "NO_COLOR": "1",
        "COLUMNS": "120",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    print(f"$ {command}", flush=True)
    done = subprocess.run(["bash", "-ec", command], cwd=folder, env=env, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode}: {command}")
    print(done.stdout, end="", flush=True)
    return done.stdout


def filled(page: str, folder: Path) -> str:
    """The page with what its commands print now."""

    def block(found: re.Match) -> str:
        parts = [f"$ {command}\n{run(command, folder)}" for command in _commands(found[1])]
        return "```console\n" + "".join(part if part.endswith("\n") else part + "\n" for part in parts) + "```"

    return BLOCK.sub(block, page)


def main(names: list[str]) -> None:
    """Fills the pages."""
    for path in [DOCS / name for name in names or PAGES]:
        with tempfile.TemporaryDirectory() as folder:
            page = path.read_text(encoding="utf-8")
            text = filled(page, Path(folder))
            for file, name in PICTURE.findall(page):
                shutil.copy(Path(folder) / file, DOCS / name)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
