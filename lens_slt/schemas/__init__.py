"""The schema of every result: its variables, their dimensions in order, and its version.

A result is what a function of lens_slt returns as an :class:`xarray.Dataset`, ``DataArray`` or
``DataTree``. Its attribute ``result`` is its name in :data:`SCHEMAS`, ``schema`` the version of the
schema it was made by. Any result may carry :data:`LEADING` dimensions in front, for several
checkpoints or models at once. :mod:`lens_slt.schema` holds results to them.
"""

from lens_slt.schemas import circuits, phases, posterior, structure, training
from lens_slt.schemas.declare import Dims, Schema

__all__ = ["LEADING", "MATRICES", "SCHEMAS", "Dims", "Schema"]

LEADING = ("checkpoint", "model")
MATRICES = ("per_token_llc", "susceptibility")  # of tokens × components
SCHEMAS: dict[str, Schema] = {
    schema.name: schema
    for module in (posterior, structure, circuits, training, phases)
    for schema in module.SCHEMAS
}
