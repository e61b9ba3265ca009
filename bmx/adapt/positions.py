"""Tables of positions of image models, read for images of another size."""

import logging
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from bmx.models.vit import resized

log = logging.getLogger('bmx')
POSITION = 'position'
PREFIX = ('class_token', 'distillation_token')  # tokens before the patches


def as_stored(abstract: Mapping[str, Any], rows: int | None) -> dict[str, Any]:
  """Returns abstract parameters whose table of positions has as many rows as a folder's.

  Args:
    abstract: the parameters of a model; one without patches is returned as it is.
    rows: of the folder's table; None if it has none.
  """
  leaf: Any = abstract.get(POSITION)
  if leaf is None or rows is None or 'patch' not in abstract or leaf.shape[0] == rows:
    return dict(abstract)
  place = leaf.sharding
  if isinstance(place, NamedSharding):
    place = NamedSharding(place.mesh, PartitionSpec())
  stored = jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype, sharding=place)
  return {**abstract, POSITION: stored}


def fit(found: dict[str, jax.Array], abstract: Mapping[str, Any]) -> dict[str, jax.Array]:
  """Resizes the table of positions among parameters by name, if the model has another size.

  Raises InputError for a grid of patches that is not square.
  """
  leaf: Any = abstract.get(POSITION)
  if POSITION not in found or found[POSITION].shape == leaf.shape:
    return found
  prefix = sum(name in abstract for name in PREFIX)
  table = found[POSITION]
  made = resized(table, leaf.shape[0], prefix).astype(leaf.dtype)
  log.info('weights    positions of %d patches resized to %d', len(table) - prefix,
           leaf.shape[0] - prefix)  # fmt: skip
  return {**found, POSITION: jax.device_put(made, leaf.sharding)}
