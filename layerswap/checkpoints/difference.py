"""What two models differ in, as data."""

import json
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

MISSING = "missing"


class Difference(NamedTuple):
    """One thing that two models differ in.

    Attributes:
        name: what ``allow`` calls it; "" cannot be allowed.
        description: what messages and manifests call it.
        values: those of the two.
        changes_function: whether a model would do something else with the other's value.
    """

    name: str
    description: str
    values: tuple[Any, Any]
    changes_function: bool = True

    def is_among(self, names: Collection[str]) -> bool:
        """Whether its name is one of ``names``, or a field of it is: rope_theta names rope_parameters.rope_theta."""
        return bool(self.name) and not {self.name, *self.name.split(".")}.isdisjoint(names)


def differing_fields(fields: Sequence[dict[str, Any]]) -> dict[str, tuple[Any, Any]]:
    """Name -> its two values, where they are not the same; NaN is the same as NaN."""
    a, b = fields
    values = {name: (a.get(name, MISSING), b.get(name, MISSING)) for name in a | b}
    return {name: pair for name, pair in values.items() if pair[0] != pair[1] and len(set(map(json.dumps, pair))) > 1}
