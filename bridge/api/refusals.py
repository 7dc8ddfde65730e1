"""How refusals look in the API's document: their shape, and an example for each code."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from pydantic import BaseModel

from bridge.errors import ERRORS

EVERYWHERE: Final = (
    "bad_message",
    "unauthorized",
    "forbidden",
    "forbidden_origin",
    "start_timeout",
    "rate_limited",
    "internal",
    "at_capacity",
    "shutting_down",
)
"""What any route may answer, whatever it is for."""


class Refusal(BaseModel):
    """What went wrong: `code` is for programs, `message` for people. docs/protocol.md lists all codes."""

    code: str
    message: str


class RefusalBody(BaseModel):
    """The body of every answer that is an error."""

    error: Refusal


def refusals(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may refuse so, by status, each code with an example."""
    statuses: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        row = ERRORS[code]
        entry = statuses.setdefault(row.status, {"model": RefusalBody, "description": "", "content": {}})
        entry["description"] = f"{entry['description']} `{code}`: {row.meaning}".strip()
        examples = entry["content"].setdefault("application/json", {}).setdefault("examples", {})
        examples[code] = {"value": {"error": {"code": code, "message": row.meaning}}}
    return statuses


def document(schema: dict[str, Any], common: Iterable[str] = EVERYWHERE) -> dict[str, Any]:
    """Complete an OpenAPI document in place: the refusals that need no route, and none that the framework invents."""
    shape = {"$ref": "#/components/schemas/RefusalBody"}
    components = schema.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        components.pop(name, None)
    definitions = RefusalBody.model_json_schema(ref_template="#/components/schemas/{model}")
    components.update(definitions.pop("$defs"))
    components["RefusalBody"] = definitions
    everywhere = refusals(*common)
    for operations in schema.get("paths", {}).values():
        for operation in operations.values():
            answers = operation.setdefault("responses", {})
            content = answers.get("422", {}).get("content", {}).get("application/json", {})
            if content.get("schema", {}).get("$ref", "").endswith("/HTTPValidationError"):
                del answers["422"]
            for status, entry in everywhere.items():
                known = answers.setdefault(str(status), {"description": ""})
                known["description"] = f"{known['description']} {entry['description']}".strip()
                body = known.setdefault("content", {}).setdefault("application/json", {})
                body.setdefault("schema", shape)
                if body["schema"] == shape:
                    body.setdefault("examples", {}).update(entry["content"]["application/json"]["examples"])
            operation["responses"] = dict(sorted(answers.items()))
    return schema
