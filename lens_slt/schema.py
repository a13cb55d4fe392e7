"""Results held to their schemas, which :mod:`lens_slt.schemas` declares.

The functions that make results end in :func:`stamped`, those that read them begin with
:func:`require`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import permutations
from typing import Any, TypeVar

import xarray as xr

from lens_slt.schemas import LEADING, SCHEMAS, Dims, Schema

Result = TypeVar("Result", xr.Dataset, xr.DataArray, xr.DataTree)
MOST_SAID = 3  # of what is wrong with a result


def stamp(name: str) -> dict[str, Any]:
    """The attributes that say which result this is and which schema it follows."""
    return {"result": name, "schema": SCHEMAS[name].version}


def stamped(result: Result, name: str) -> Result:
    """A result with its :func:`stamp`, as the function that makes it returns it.

    Raises RuntimeError where it does not hold what its schema says, in that order: a bug.
    """
    wrong = list(_wrong(result, SCHEMAS[name], in_order=True))
    if wrong:
        raise RuntimeError(f"{_call(SCHEMAS[name])} does not follow its schema: {'; '.join(wrong)}")
    result.attrs.update(stamp(name))
    return result


def require(result: Any, *names: str, argument: str, leading: Dims = ()) -> Any:
    """The result, its dimensions in the schema's order; an error where it is not one of ``names``.

    Arrays that name no result are judged by what they hold.

    Args:
        result: what was passed.
        names: of the results that are allowed, keys of :data:`SCHEMAS`.
        argument: how the caller's argument is called.
        leading: of :data:`LEADING`, the dimensions in front that the caller can do with.

    Raises:
        TypeError: something else, or another result.
        ValueError: of another schema version; something was selected away or is missing; a
            dimension in front.
    """
    wanted = " or ".join(_call(SCHEMAS[name]) for name in names)
    if not isinstance(result, xr.Dataset | xr.DataArray | xr.DataTree):
        raise TypeError(f"{argument} must come from {wanted}; got {type(result).__name__}")
    name = result.attrs.get("result")
    if name is not None and name not in names:
        what = f"what {_call(SCHEMAS[name])} returns" if name in SCHEMAS else repr(name)
        raise TypeError(f"{argument} must come from {wanted}; got {what}")
    if name is None:
        schema = min((SCHEMAS[n] for n in names), key=lambda one: len([*_wrong(result, one)]))
    else:
        schema = SCHEMAS[name]
        check_version(name, result.attrs.get("schema", 0), argument)
    if not isinstance(result, schema.kind):
        raise TypeError(
            f"{argument} must be the {schema.kind.__name__} that {wanted} returns; "
            f"got {type(result).__name__}"
        )
    wrong = list(_wrong(result, schema))
    if wrong:
        more = f"; and {len(wrong) - MOST_SAID} more" * (len(wrong) > MOST_SAID)
        raise ValueError(
            f"{argument} must come from {wanted}, whole; it has {'; '.join(wrong[:MOST_SAID])}"
            f"{more}: {_remedy(result, schema, argument)}"
        )
    for dim in LEADING:
        own = schema.of_a_run and dim == "checkpoint"
        if not own and dim not in leading and dim in _all_dims(result, schema):
            raise ValueError(
                f"{argument} has the dimension {dim!r}: choose one, {argument}.sel({dim}=…)"
            )
    return _ordered(result, schema)


def name_of(result: Any, leading: Dims = ()) -> str:
    """The name of a whole result of this version, without a dimension in front; else "".

    ``leading``: of :data:`LEADING`, the dimensions in front that it may have.
    """
    name = str(getattr(result, "attrs", {}).get("result", ""))
    if name not in SCHEMAS:
        return ""
    try:
        require(result, name, argument="result", leading=leading)
    except (TypeError, ValueError):
        return ""
    return name


def check_version(name: str, version: Any, argument: str) -> None:
    """ValueError where a result was written by another version of its schema than this one."""
    schema = SCHEMAS[name]
    if version == schema.version:
        return
    newer = isinstance(version, int) and version > schema.version
    todo = "install that one" if newer else f"make it again with {_call(schema)}"
    raise ValueError(
        f"{argument}: {'a newer' if newer else 'an older'} version of lens_slt made this result "
        f"({name}, schema {version}; this version reads schema {schema.version}): {todo}"
    )


def _call(schema: Schema) -> str:
    return f"{schema.made_by}(…)"


def _dims(result: Any, schema: Schema) -> dict[str, Dims]:
    """Dimensions of every variable, coordinates included, by the name that the schema uses."""
    if isinstance(result, xr.DataTree):
        return {
            f"{node.path}/{name}".lstrip("/"): tuple(map(str, variable.dims))
            for node in result.subtree
            for name, variable in node.to_dataset(inherit=False).variables.items()
        }
    if isinstance(result, xr.DataArray):
        whole = {schema.name: tuple(map(str, result.dims))}
        return whole | {str(name): tuple(map(str, c.dims)) for name, c in result.coords.items()}
    return {str(name): tuple(map(str, v.dims)) for name, v in result.variables.items()}


def _all_dims(result: Any, schema: Schema) -> set[str]:
    return {dim for dims in _dims(result, schema).values() for dim in dims}


def _wrong(result: Any, schema: Schema, *, in_order: bool = False) -> Iterator[str]:
    """What a result lacks or has otherwise, in words."""
    there = _dims(result, schema)
    for pattern, dims in schema.variables.items():
        for name in _expanded(pattern, there):
            if name not in there:
                if pattern in schema.needed:
                    yield f"no {name}{_words(dims)}"
                continue
            order = _order(there[name], dims)
            if order is None or (in_order and order != there[name]):
                yield f"{name}{_words(there[name])} instead of {name}{_words(dims)}"
    yield from (f"no attribute {name!r}" for name in schema.attrs if name not in result.attrs)


def _words(dims: Dims) -> str:
    return f" ({', '.join(dims)})"


def _expanded(pattern: str, there: Mapping[str, Dims]) -> list[str]:
    """The names that a pattern stands for: one for every group at the place of its ``*``."""
    before, star, after = pattern.partition("*")
    if not star:
        return [pattern]
    inside = [name.removeprefix(before) for name in there if name.startswith(before)]
    groups = {name.split("/")[0] for name in inside if "/" in name}
    return [f"{before}{group}{after}" for group in sorted(groups)]


def _order(own: Dims, dims: Dims) -> Dims | None:
    """A variable's dimensions in the schema's order, those in front first; None if others."""
    front = tuple(dim for dim in LEADING if dim in own)
    rest = [dim for dim in own if dim not in front]
    if len(rest) != len(dims):
        return None
    for order in permutations(rest):
        if all(one in allowed.split("|") for one, allowed in zip(order, dims, strict=True)):
            return (*front, *order)
    return None


def _ordered(result: Any, schema: Schema) -> Any:
    """The result with every declared variable in the schema's order."""
    turned = {}
    for name, own in _dims(result, schema).items():
        order = _order(own, schema.variables[name]) if name in schema.variables else own
        if order is not None and order != own:
            turned[name] = order
    if not turned:
        return result
    if isinstance(result, xr.DataArray):
        return result.transpose(*turned[schema.name])
    if isinstance(result, xr.DataTree):
        raise ValueError(f"{schema.name}: {next(iter(turned))} must not be transposed")
    return result.assign({name: result[name].transpose(*order) for name, order in turned.items()})


def _remedy(result: Any, schema: Schema, argument: str) -> str:
    """What to do about a result that is not whole."""
    there = _all_dims(result, schema)
    for dims in schema.needed.values():
        for dim in dims:
            if not there & {*dim.split("|")} and "*" not in dim:
                return f"a selection must keep its dimension, as {argument}.isel({dim}=[0]) does"
    return f"pass what {_call(schema)} returned"
