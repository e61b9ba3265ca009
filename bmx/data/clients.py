"""Clients of federated training: who holds which examples, and whom a round reads.

A round is a step: its batch has the rows of `per_round` clients, one client after another, as many
rows for each. N examples, K clients, C clients of a round, R rows of a client in a round.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bmx.core import streams
from bmx.core.data import Described, Examples, Spec
from bmx.core.errors import InputError, did_you_mean
from bmx.core.ranges import check_number
from bmx.core.types import HostBatch, Metadata
from bmx.data.mixture import SOURCE_BITS, Mix
from bmx.data.transforms import Around

DRAWS = 1000  # of a random split, until each client has an example


@dataclasses.dataclass(frozen=True)
class Clients(Around):
  """Examples that belong to clients.

  In training a batch holds C clients, drawn without replacement for each round. A client gives its
  examples `passes` times, in a new order each time; rows that are left over have weight 0, and
  examples beyond R rows wait for another round. In evaluation all examples are read once, one
  client after another.

  Rows have two more arrays: `client` int32, its number, and `client_examples` float32, the number
  of its examples.

  Attributes:
    inner: the examples.
    groups: indices of the examples of each client, int64.
    names: of the clients.
    per_round: C.
    passes: times that a client reads its examples in a round; 0: until its rows are full.
    seed: of the draws.
    train: whether rounds are drawn.

  Raises:
    InputError: a client without examples; more clients in a round than there are.
  """

  inner: Examples
  groups: Sequence[np.ndarray]
  names: Sequence[str]
  per_round: int
  passes: int = 1
  seed: int = 0
  train: bool = True

  def __post_init__(self):
    check_number('data.passes', self.passes, at_least=0)
    empty = [name for name, own in zip(self.names, self.groups, strict=True) if not len(own)]
    if empty:
      raise InputError(
        f'client {empty[0]!r}: expected at least one example; {len(empty)} of {len(self.groups)} '
        'clients have none: leave them out, or split the data among fewer'
      )
    if not 1 <= self.per_round <= len(self.groups):
      raise InputError(
        f'data.per_round={self.per_round}: expected from 1 to {len(self.groups)}, the number of '
        'clients'
      )

  @functools.cached_property
  def _order(self) -> np.ndarray:
    """Inner indices of all examples, one client after another, int64 [N]."""
    return np.concatenate(list(self.groups))

  @functools.cached_property
  def _starts(self) -> np.ndarray:
    """Where the examples of each client begin, and the end of the last, int64 [K + 1]."""
    return np.cumsum([0, *map(len, self.groups)])

  @functools.cached_property
  def owners(self) -> np.ndarray:
    """The client of each example, int64 [N]."""
    return np.repeat(np.arange(len(self.groups)), np.diff(self._starts))

  @property
  def size(self) -> int:
    """Number of examples of all clients."""
    return len(self._order)

  @property
  def metadata(self) -> Metadata:
    """Facts of the examples and of the clients."""
    sizes = np.diff(self._starts)
    source = (f'{self.inner.metadata.get("source", "")}; {len(sizes)} clients with '
              f'{sizes.min()} to {sizes.max()} examples, {self.per_round} a round')  # fmt: skip
    known = {'num_clients': len(sizes), 'clients_per_round': self.per_round, 'source': source}
    return {**self.inner.metadata, **known}

  @property
  def spec(self) -> dict[str, Spec]:
    """Arrays of one example."""
    more = {'client': Spec((), np.dtype(np.int32)), 'client_examples': Spec((), np.dtype('f4'))}
    return {**self.inner.spec, **more}

  @property
  def composer(self) -> 'Clients':
    """Itself."""
    return self

  def describe(self, indices: np.ndarray) -> list[dict[str, Any]]:
    """What the inner examples are to people, with the name of the client."""
    known: Any = [{}] * len(indices)
    if isinstance(self.inner, Described):
      known = self.inner.describe(self._order[indices])
    owners = self.owners[indices]
    return [{'client': self.names[k], **one} for k, one in zip(owners, known, strict=True)]

  def indices(self, positions: np.ndarray, batch_size: int) -> tuple[np.ndarray, Any]:
    """Composes rounds: positions int64 [n] -> (indices int64 [n], weights float32 [n] or None).

    Raises InputError if the clients of a round have not as many rows each.
    """
    if not self.train:
      return positions % self.size, None
    if batch_size % self.per_round:
      raise InputError(
        f'batch_size={batch_size}: expected a multiple of data.per_round={self.per_round}: '
        'the rows of a batch are shared equally among the clients of a round'
      )
    rounds, places = np.divmod(positions, batch_size)
    found, weights = np.empty(len(positions), np.int64), np.empty(len(positions), np.float32)
    for number in np.unique(rounds):
      here = rounds == number
      chosen, real = self._round(int(number), batch_size // self.per_round)
      found[here], weights[here] = chosen[places[here]], real[places[here]]
    return found, weights

  @functools.cached_property
  def _round(self):
    """Function (round, R) -> (indices int64 [C · R], weights float32 [C · R])."""

    def compose(number: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
      random = streams.generator(self.seed, streams.CLIENTS, number)
      chosen = random.choice(len(self.groups), self.per_round, replace=False)
      parts = [self.rows_of(int(client), rows, random) for client in chosen]
      return np.concatenate([x for x, _ in parts]), np.concatenate([w for _, w in parts])

    return functools.lru_cache(maxsize=8)(compose)

  def rows_of(
    self, client: int, rows: int, random: np.random.Generator
  ) -> tuple[np.ndarray, np.ndarray]:
    """Draws the rows of a client -> (indices int64 [R], weights float32 [R])."""
    first, end = self._starts[client : client + 2]
    passes = self.passes or -(-rows // (end - first))
    order = [random.permutation(np.arange(first, end)) for _ in range(passes)]
    order = np.concatenate(order)[:rows]
    weights = np.zeros(rows, np.float32)
    weights[: len(order)] = 1
    return np.resize(order, rows), weights

  def rows(self, indices: np.ndarray, positions: np.ndarray) -> HostBatch:
    """Rows of the inner examples, with their clients."""
    owners = self.owners[indices]
    sizes = np.diff(self._starts)[owners]
    rows = self.inner.rows(self._order[indices], positions)
    return {**rows, 'client': owners.astype(np.int32), 'client_examples': sizes.astype('f4')}


def dirichlet(
  examples: Examples,
  clients: int,
  per_round: int,
  alpha: float = 0.1,
  passes: int = 1,
  seed: int = 0,
  train: bool = True,
) -> Clients:
  """Splits examples with classes among clients of different shares of the classes.

  Each class is divided by shares that are drawn from a symmetric Dirichlet distribution (Hsu et al.
  2019): at a small `alpha` a client has few classes. The draw is repeated until each client has an
  example.

  Args:
    examples: with `label`.
    clients: K.
    per_round: C, clients of a round.
    alpha: of the distribution; 0: each client has as many examples, drawn from all classes.
    passes: see `Clients`.
    seed: of the split and of the rounds.
    train: whether rounds are drawn.

  Raises:
    InputError: examples without classes, more clients than examples, or a split that leaves a
      client without one.
  """
  check_number('data.alpha', alpha, at_least=0)
  if not 1 <= clients <= examples.size:
    raise InputError(
      f'data.clients={clients}: expected from 1 to {examples.size}, the number of examples'
    )
  everything = np.arange(examples.size)
  random = streams.generator(seed, streams.CLIENT_SPLIT)
  if alpha:
    groups = _by_shares(_values(examples, 'label'), clients, alpha, random)
  else:
    groups = [np.sort(part) for part in np.array_split(random.permutation(everything), clients)]
  return Clients(examples, groups, [str(i) for i in range(clients)], per_round, passes, seed, train)


def by_column(
  examples: Examples,
  column: str,
  per_round: int,
  passes: int = 1,
  seed: int = 0,
  train: bool = True,
) -> Clients:
  """Gives each value of a column a client.

  Args:
    examples: of a table whose `drop` names the column, so that the model does not read it; or with
      an integer array of this name.
    column: of the client's name.
    per_round: see `Clients`.
    passes: see `Clients`.
    seed: of the rounds.
    train: whether rounds are drawn.

  Raises:
    InputError: the examples do not know the column.
  """
  values = _values(examples, column)
  names, owner = np.unique(values, return_inverse=True)
  groups = [np.flatnonzero(owner == i) for i in range(len(names))]
  return Clients(examples, groups, [str(n) for n in names], per_round, passes, seed, train)


def sources(
  sources: Mapping[str, Examples],
  per_round: int,
  passes: int = 1,
  seed: int = 0,
  train: bool = True,
) -> Clients:
  """Gives each data part a client: a folder or a file each.

  Args:
    sources: name of the client -> its examples; all of the same arrays, classes and tokenizer.
    per_round: see `Clients`.
    passes: see `Clients`.
    seed: of the rounds.
    train: whether rounds are drawn.

  Raises:
    InputError: the parts differ.
  """
  joined = Mix(sources, dict.fromkeys(sources, 1.0), seed, train)
  number = {name: i for i, name in enumerate(joined.sources)}
  groups = [np.arange(x.size) + (number[k] << SOURCE_BITS) for k, x in joined.sources.items()]
  return Clients(joined, groups, list(number), per_round, passes, seed, train)


def _by_shares(
  label: np.ndarray, clients: int, alpha: float, random: np.random.Generator
) -> list[np.ndarray]:
  """Divides each class by drawn shares, until every client has an example."""
  classes = [np.flatnonzero(label == c) for c in np.unique(label)]
  for _ in range(DRAWS):
    parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
    for own in classes:
      cuts = np.cumsum(random.dirichlet(np.full(clients, alpha)))[:-1]
      ends = np.round(cuts * len(own)).astype(int)
      for part, some in zip(parts, np.split(random.permutation(own), ends), strict=True):
        part.append(some)
    groups = [np.sort(np.concatenate(part)) for part in parts]
    if min(map(len, groups)):
      return groups
  raise InputError(
    f'data.alpha={alpha}: expected a split of {len(label)} examples among {clients} clients that '
    f'leaves none without examples; {DRAWS} draws did not: set a larger alpha or fewer clients'
  )


def _values(examples: Examples, column: str) -> np.ndarray:
  """Returns the value that each example has in a column or an integer array, [N]."""
  everything = np.arange(examples.size)
  if column in examples.spec:
    values = examples.rows(everything, everything)[column]
    if values.ndim == 1 and np.issubdtype(values.dtype, np.integer):
      return values
  known = examples.describe(everything) if isinstance(examples, Described) else [{}]
  if column not in known[0]:
    found = sorted({*known[0], *(k for k, v in examples.spec.items() if not v.shape)})
    raise InputError(
      f'data.column={column!r}: expected a column that the data part drops (drop=({column!r},)) or '
      f'an integer array; found {", ".join(found) or "none"}{did_you_mean(column, found)}'
    )
  return np.array([str(one[column]) for one in known])
