"""What mkdocs needs beside the pages of this folder: the README and the two guides of the project's root as pages of the site."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"README.md": "index.md", "ARCHITECTURE.md": "architecture.md", "CONTRIBUTING.md": "contributing.md"}


def on_files(files: Files, config) -> Files:
    """Adds the pages, their links as they are seen from this folder; leaves out what isn't a page."""
    for file in [file for file in files if file.src_uri.endswith(".py")]:
        files.remove(file)
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=_from_here((ROOT / name).read_text(encoding="utf-8"))))
    return files


def _from_here(text: str) -> str:
    def link(found: re.Match) -> str:
        target, _, anchor = found[1].partition("#")
        target = PAGES.get(target, target.removeprefix("docs/"))
        return f"]({target}#{anchor})" if anchor else f"]({target})"

    return re.sub(r"\]\(((?!https?:)[^)#][^)]*)\)", link, text)
