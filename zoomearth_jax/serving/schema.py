"""Typed bodies: pydantic's checks, said in OpenAI's form."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from zoomearth_jax.errors import suggestion
from zoomearth_jax.serving.errors import APIError

Body = TypeVar("Body", bound="Strict")


class Strict(BaseModel):
    """A body whose fields have exactly these types; other fields are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


def checked(kind: type[Body], value: dict[str, Any]) -> Body:
    """The typed body of a JSON object.

    Raises:
        APIError: 400: which field is wrong, and how.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False, include_input=False)
        first = max((one for one in errors if one["loc"][:1] == errors[0]["loc"][:1]), key=lambda one: len(one["loc"]))
        param = field_name(kind, first["loc"])
        said = first["msg"]
        if first["type"] == "extra_forbidden":
            said = f"unknown field; {suggestion(str(first['loc'][-1]), kind.model_fields, 'leave it out')}"
        raise APIError(400, f"{param}: {said}" if param else said, param or None, "invalid_value") from None


def field_name(kind: type[BaseModel], places: tuple[int | str, ...]) -> str:
    """A field as it is written: `messages[0].content`. Names that pydantic adds for the members of a union are left out."""
    name = ""
    for place in places:
        if isinstance(place, int):
            name += f"[{place}]"
        elif place.isidentifier() and not place[0].isupper() and place not in _UNION_MEMBERS:
            name += f".{place}" if name else place
    return name[:200]


_UNION_MEMBERS = frozenset(("str", "int", "float", "bool", "list", "none"))
