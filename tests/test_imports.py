"""Imports flow one way: configs -> models, data_pipeline -> tools -> rl -> the rest; models and data_pipeline are strangers."""

import ast
from pathlib import Path

import pytest

import zoomearth_jax

PACKAGE = Path(zoomearth_jax.__file__).parent
MAY_IMPORT = {
    "configs": {"configs", "errors", "files"},
    "models": {"configs", "models", "errors", "files", "progress"},
    "data_pipeline": {"configs", "data_pipeline", "errors", "files", "progress"},
    "tools": {"configs", "data_pipeline", "tools", "errors"},
    "rl": {"configs", "models", "data_pipeline", "tools", "rl", "errors"},
}


def imported(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [a.name for a in getattr(node, "names", []) if isinstance(node, ast.Import)]
        )
        modules |= {name.split(".")[1] for name in names if name.startswith("zoomearth_jax.")}
    return modules


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_parts(part):
    files = list((PACKAGE / part).rglob("*.py"))
    assert files
    for file in files:
        assert imported(file) <= MAY_IMPORT[part], file


def test_top_level_links_lead_into_the_package():
    root = PACKAGE.parent
    if not (root / "setup.py").exists():
        pytest.skip("an installed package has no links")
    for part in ("configs", "models", "data_pipeline", "rl"):
        assert (root / part).is_symlink()
        assert (root / part).resolve() == PACKAGE / part
