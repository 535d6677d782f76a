"""What self-contained pages share: templates, data that lies in a page, and the policy by which a page loads nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from importlib.resources import files
from typing import Any

import jinja2


def render(template: str, **values: Any) -> str:
    """A template of this folder, filled in; all values are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(part),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def part(name: str) -> str:
    """The text of a file of this folder."""
    return (files("zoomearth_jax.reports") / name).read_text(encoding="utf-8")


def json_block(value: Any) -> str:
    """Compact JSON for a script element of type application/json: plain ASCII, no `<`, null in place of NaN and infinities."""
    text = json.dumps(_finite(value), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def policy(script: str, style: str) -> str:
    """The Content-Security-Policy of a page that runs one script, has one style, shows embedded pictures and loads nothing."""
    hashed = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (script, style)]
    return (
        f"default-src 'none'; img-src data:; script-src 'sha256-{hashed[0]}'; style-src 'sha256-{hashed[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )
