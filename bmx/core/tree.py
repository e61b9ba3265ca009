"""Names, masks, sizes, differences and digests of trees of arrays."""

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bmx.core.errors import InputError
from bmx.core.types import SparseRows

Tree = Any


def named(tree: Tree, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
  """Returns the leaves by name, in tree order.

  >>> named({'dense': {'bias': 1, 'kernel': 2}})
  {'dense/bias': 1, 'dense/kernel': 2}
  """
  leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Inverse of `named`: returns nested dicts.

  >>> nested({'a/b': 1, 'a/c': 2})
  {'a': {'b': 1, 'c': 2}}
  """
  result: dict[str, Any] = {}
  for name, value in flat.items():
    *folders, leaf = name.split('/')
    place = result
    for folder in folders:
      place = place.setdefault(folder, {})
    place[leaf] = value
  return result


def map_named(fn: Callable[..., Any], tree: Tree, *rest: Tree, is_leaf=None) -> Tree:
  """Maps a function over the leaves, with the leaf's name as its first argument."""

  def call(path, *leaves):
    return fn(jax.tree_util.keystr(path, simple=True, separator='/'), *leaves)

  return jax.tree_util.tree_map_with_path(call, tree, *rest, is_leaf=is_leaf)


def mask(tree: Tree, pattern: str, required: bool = True, is_leaf=None) -> Tree:
  """Returns a tree of bools: True at leaves whose name matches the regex anywhere.

  Raises InputError if `required` and no name matches.
  """
  try:
    regex = re.compile(pattern)
  except re.error as error:
    raise InputError(f'{pattern!r} is not a regular expression: {error}') from None
  result = map_named(lambda name, _: bool(regex.search(name)), tree, is_leaf=is_leaf)
  if required and not any(jax.tree.leaves(result)):
    names = '\n  '.join(list(named(tree, is_leaf))[:40])
    raise InputError(f'the regex {pattern!r} matches no parameter; parameters are:\n  {names}')
  return result


def is_rows(x: Any) -> bool:
  """Returns whether a node of a gradient is a few rows of a table."""
  return isinstance(x, SparseRows)


def rows_or_leaves(tree: Tree) -> list[Any]:
  """Returns the leaves of a gradient, each `SparseRows` as one."""
  return jax.tree.leaves(tree, is_leaf=is_rows)


def has_floats(tree: Tree) -> bool:
  """Returns whether a leaf holds floating-point numbers: weights, not numbers of rows."""
  return any(jnp.issubdtype(x.dtype, jnp.floating) for x in jax.tree.leaves(tree))


def count(tree: Tree) -> int:
  """Returns the number of elements."""
  return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))


def nbytes(tree: Tree) -> int:
  """Returns the bytes of all elements, of arrays or of their abstract shapes."""
  return sum(int(np.prod(x.shape)) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


def signature(tree: Tree) -> dict[str, list]:
  """Returns shapes and dtypes by name, as JSON holds them: NAME -> [shape, dtype]."""
  return {k: [list(x.shape), np.dtype(x.dtype).name] for k, x in named(tree).items()}


def difference(given: Mapping[str, list], expected: Mapping[str, list]) -> list[str]:
  """Lists the differences of two signatures: leaves missing, extra, of another shape or dtype."""
  lines = [f'missing  {k} {v}' for k, v in expected.items() if k not in given]
  lines += [f'extra    {k} {v}' for k, v in given.items() if k not in expected]
  lines += [
    f'differs  {k}: has {given[k]}, expected {v}'
    for k, v in expected.items()
    if k in given and given[k] != v
  ]
  return lines


def digest(tree: Tree) -> str:
  """Returns the SHA-256 of names, shapes, dtypes and bytes; fetches one leaf at a time."""
  total = hashlib.sha256()
  for name, leaf in named(tree).items():
    array = np.asarray(fetch(leaf))
    total.update(f'{name} {array.shape} {array.dtype.name}\n'.encode())
    total.update(np.ascontiguousarray(array).tobytes())
  return total.hexdigest()


def fetch(leaf: jax.Array) -> np.ndarray:
  """Returns the whole array on this host, even if its shards are on several hosts."""
  if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
    if leaf.is_fully_replicated:
      return np.asarray(leaf.addressable_data(0))
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
  return np.asarray(leaf)
