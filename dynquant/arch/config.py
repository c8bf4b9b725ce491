"""config.json as typed values, with everything that is missing or mistyped said at once."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from dynquant.errors import ArchitectureError

Count = Annotated[int, Field(strict=True, gt=0, lt=2**31)]
Natural = Annotated[int, Field(strict=True, ge=0, lt=2**31)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Truth = Annotated[bool, Field(strict=True)]

T = TypeVar("T")


@cache
def _adapter(form: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(form)


def read_config(form: type[T], values: Mapping[str, Any], where: str) -> T:
    """Return the values as an instance of a dataclass; keys it does not name are left alone.

    A null counts as absent. Raises ArchitectureError naming every key that is missing or that
    holds what it cannot hold; where: what a message begins with.
    """
    present = {key: value for key, value in values.items() if value is not None}
    try:
        return _adapter(form).validate_python(present)
    except ValidationError as e:
        messages: list[str] = []
        for problem in e.errors(include_url=False):
            key = ".".join(map(str, problem["loc"]))
            if problem["type"] == "missing":
                messages.append(f"{where}: {key} is missing")
            else:
                what = problem["msg"].removeprefix("Input ").lower()
                messages.append(f"{where}: {key} is {problem['input']!r}, but {what}")
        raise ArchitectureError(*messages) from e
