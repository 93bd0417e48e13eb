"""What a new version breaks of a released one, in its OpenAPI document or its migrations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Schema = dict[str, Any]

_LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems")
_UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems")
_RULES = ("pattern", "format", "uniqueItems")


def edits(released: Mapping[str, str], migrations: Mapping[str, str]) -> list[str]:
    """Return which files of migrations differ from what was released. Both map names to digests.

    A database that has a migration never gets later changes of its file. So a released file must
    stay as it is, and new files must have higher numbers.
    """
    last = max(released)[:4]
    kept = released.keys() & migrations.keys()
    added = migrations.keys() - kept
    return [
        *(f"{name} is removed" for name in released.keys() - kept),
        *(f"{name} is changed" for name in kept if migrations[name] != released[name]),
        *(f"{name} must have a number above {last}" for name in added if name[:4] <= last),
    ]


def losses(old: Schema, new: Schema) -> list[str]:
    """Return what the new document removes or narrows. What it adds is no loss."""
    return list(_Comparison(old, new).paths())


class _Comparison:
    def __init__(self, old: Schema, new: Schema) -> None:
        self._old = old
        self._new = new

    def paths(self) -> Iterator[str]:
        for path, old_methods in self._old["paths"].items():
            new_methods = self._new["paths"].get(path, {})
            for method, old in old_methods.items():
                name = f"{method.upper()} {path}"
                if method not in new_methods:
                    yield f"{name} is removed"
                else:
                    yield from self._operation(name, old, new_methods[method])

    def _operation(self, name: str, old: Schema, new: Schema) -> Iterator[str]:
        before, after = _parameters(self._old, old), _parameters(self._new, new)
        for key, parameter in after.items():
            if parameter.get("required") and not before.get(key, {}).get("required"):
                yield f"{name}: {key} is now required"
        for key, parameter in before.items():
            if key not in after:
                yield f"{name}: {key} is removed"
            else:
                yield from self._schema(
                    f"{name}: {key}", parameter["schema"], after[key]["schema"], is_sent=True
                )
        body, new_body = old.get("requestBody", {}), new.get("requestBody", {})
        if new_body.get("required") and not body.get("required"):
            yield f"{name}: a body is now required"
        yield from self._content(f"{name}: request", body, new_body, is_sent=True)
        for status, response in old["responses"].items():
            where = f"{name}: response {status}"
            if status not in new["responses"]:
                yield f"{where} is removed"
                continue
            before = _resolved(self._old, response)
            after = _resolved(self._new, new["responses"][status])
            for header in set(before.get("headers", {})) - set(after.get("headers", {})):
                yield f"{where}: header {header} is removed"
            yield from self._content(where, before, after, is_sent=False)

    def _content(self, where: str, old: Schema, new: Schema, *, is_sent: bool) -> Iterator[str]:
        for media_type, before in old.get("content", {}).items():
            after = new.get("content", {}).get(media_type)
            if after is None:
                yield f"{where}: {media_type} is removed"
            elif "schema" in before:
                yield from self._schema(
                    where, before["schema"], after.get("schema", {}), is_sent=is_sent
                )

    def _schema(self, where: str, old: Schema, new: Schema, *, is_sent: bool) -> Iterator[str]:
        """Yield the losses of a schema: each alternative must still have one that covers it."""
        after = list(_alternatives(self._new, new))
        for before in _alternatives(self._old, old):
            found = [list(self._one(where, before, each, is_sent=is_sent)) for each in after]
            yield from min(found, key=len)

    def _one(self, where: str, old: Schema, new: Schema, *, is_sent: bool) -> Iterator[str]:
        for name, of in (("type", _types), ("value", _values)):
            before, after = of(old), of(new)
            if after is not None and (before is None or not before <= after):
                yield f"{where}: a {name} is removed"
        if is_sent:
            for bounds, sign in ((_LOWER, 1), (_UPPER, -1)):
                for bound in bounds:
                    if bound in new and (bound not in old or sign * new[bound] > sign * old[bound]):
                        yield f"{where}: {bound} is stricter"
            for rule in _RULES:
                if rule in new and new[rule] != old.get(rule):
                    yield f"{where}: {rule} is stricter"
            if new.get("additionalProperties") is False and old.get("additionalProperties", True):
                yield f"{where}: no further members are accepted"
        before, after = set(old.get("required", ())), set(new.get("required", ()))
        for name in sorted(after - before if is_sent else before - after):
            yield f"{where}: {name} is {'now' if is_sent else 'no longer'} required"
        members = new.get("properties", {})
        for name, member in old.get("properties", {}).items():
            if name not in members:
                yield f"{where}: {name} is removed"
            else:
                yield from self._schema(f"{where}: {name}", member, members[name], is_sent=is_sent)
        if "items" in old:
            yield from self._schema(
                f"{where}: items", old["items"], new.get("items", {}), is_sent=is_sent
            )


def _resolved(document: Schema, schema: Schema) -> Schema:
    """Return a schema, or the one that it refers to."""
    while "$ref" in schema:
        place = schema["$ref"]
        schema = document
        for part in place.removeprefix("#/").split("/"):
            schema = schema[part]
    return schema


def _alternatives(document: Schema, schema: Schema) -> Iterator[Schema]:
    schema = _resolved(document, schema)
    inner = schema.get("anyOf") or schema.get("oneOf")
    if inner is None:
        yield schema
    for each in inner or ():
        yield from _alternatives(document, each)


def _parameters(document: Schema, operation: Schema) -> dict[str, Schema]:
    parameters = [_resolved(document, each) for each in operation.get("parameters", ())]
    return {f"{each['in']} parameter {each['name']}": each for each in parameters}


def _types(schema: Schema) -> set[str] | None:
    kind = schema.get("type")
    return None if kind is None else {kind} if isinstance(kind, str) else set(kind)


def _values(schema: Schema) -> set[str] | None:
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    return None if values is None else {repr(value) for value in values}
