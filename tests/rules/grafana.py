"""Validates a dashboard against Grafana's own schema (grafana-foundation-sdk, generated from it) and prints the differences."""

import enum
import json
import sys
import typing

import typeguard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard

MODELS = "grafana_foundation_sdk.models"
# Keys of an annotation that belong to the Prometheus data source (pkg/promlib) and are not in the schema.
OF_PROMETHEUS = {"titleFormat", "textFormat", "useValueForTime"}


def unknown(given, read, path):
    """Keys that are not in the schema: they are lost when the dashboard is parsed and serialised."""
    if isinstance(given, dict) and isinstance(read, dict):
        for key, value in given.items():
            if key in read:
                yield from unknown(value, read[key], f"{path}.{key}")
            elif value is not None and key not in OF_PROMETHEUS:
                yield f"{path}.{key}: no such key"
    elif isinstance(given, list) and isinstance(read, list) and len(given) == len(read):
        for place, (one, other) in enumerate(zip(given, read)):
            yield from unknown(one, other, f"{path}[{place}]")
    elif given != read:
        yield f"{path}: {given!r} is read as {read!r}"


def choices(hint):
    """The values of the enumeration that a field may have."""
    parts = typing.get_args(hint) or (hint,)
    return [one.value for part in parts if isinstance(part, type) and issubclass(part, enum.Enum) for one in part]


def misfits(value, path):
    """Values whose type differs from the schema."""
    if isinstance(value, list):
        for place, one in enumerate(value):
            yield from misfits(one, f"{path}[{place}]")
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from misfits(one, f"{path}.{key}")
    elif type(value).__module__.startswith(MODELS):
        for name, hint in typing.get_type_hints(type(value)).items():
            one = getattr(value, name, None)
            # The parser does not convert values of enumerations, nor objects in lists.
            plain = one in choices(hint) if not isinstance(one, (list, dict)) else all(type(x) is dict for x in one)
            if not plain:
                try:
                    typeguard.check_type(one, hint)
                except typeguard.TypeCheckError as error:
                    yield f"{path}.{name}: {error}"
            yield from misfits(one, f"{path}.{name}")


given = json.load(open(sys.argv[1], encoding="utf-8"))
read = dashboard.Dashboard.from_json(given)
found = [*unknown(given, json.loads(JSONEncoder(sort_keys=True).encode(read)), "$"), *misfits(read, "$")]
print("\n".join(found))
sys.exit(bool(found))
