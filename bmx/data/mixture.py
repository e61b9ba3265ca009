"""Mixtures: several sources by weight."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bmx.core import streams
from bmx.core.data import Digested, Examples, Spec, Stateful
from bmx.core.errors import InputError, did_you_mean
from bmx.core.types import HostBatch, Metadata
from bmx.data.batches import composer_of, in_order

BLOCK = 1000  # positions whose mixture is exact
SOURCE_BITS = 40  # of an index of a mixture, for the index within its source


@dataclasses.dataclass(frozen=True)
class Mix:
  """Several sources by weight; the source and the example at a position need no history.

  Of every `BLOCK` positions each source has its share exactly, in an order drawn for the block; a
  source is read in a new permutation each of its own epochs. So any process and any resumed run
  computes the same batches.

  Attributes:
    sources: name -> examples; all have one spec.
    weights: name -> weight, above 0; they need not sum to 1.
    seed: of the order.
    train: shuffled; otherwise the sources are read one after another.

  Raises:
    InputError: no source, unknown or missing weights, sources that differ in their spec or in what
      was fitted to them.
  """

  sources: Mapping[str, Examples]
  weights: Mapping[str, float]
  seed: int = 0
  train: bool = True

  def __post_init__(self):
    if not self.sources:
      raise InputError('mix: expected at least one source')
    for name in {*self.sources, *self.weights}:
      if name not in self.sources:
        raise InputError(f'mix.weights.{name}: no such source{did_you_mean(name, self.sources)}')
      if not self.weights.get(name, 0) > 0:
        raise InputError(f'mix.weights.{name}={self.weights.get(name)}: expected a number above 0')
    first, *others = self.sources
    for name in others:
      if self.sources[name].spec != self.sources[first].spec:
        raise InputError(
          f'mix: sources {first} and {name} differ: {self.sources[first].spec} and '
          f'{self.sources[name].spec}; expected one spec'
        )
      if _state(self.sources[name]) != _state(self.sources[first]):
        differing = sorted(k for k, v in _state(self.sources[name]).items()
                           if v != _state(self.sources[first]).get(k))  # fmt: skip
        raise InputError(
          f'mix: sources {first} and {name} differ in {", ".join(differing)}: expected one '
          'tokenizer, the same classes and columns, since a label or a token has one meaning'
        )
    if min(self.counts.values()) < 1:
      raise InputError(f'mix.weights={dict(self.weights)}: expected shares of at least 1 / {BLOCK}')

  @functools.cached_property
  def counts(self) -> dict[str, int]:
    """Positions of each block that a source has; they sum to BLOCK."""
    total = sum(self.weights[k] for k in self.sources)
    exact = {k: BLOCK * self.weights[k] / total for k in self.sources}
    counts = {k: int(v) for k, v in exact.items()}
    by_remainder = sorted(exact, key=lambda k: counts[k] - exact[k])
    for k in by_remainder[: BLOCK - sum(counts.values())]:
      counts[k] += 1
    return counts

  @property
  def size(self) -> int:
    """Examples of all sources together."""
    return sum(x.size for x in self.sources.values())

  @property
  def spec(self) -> dict[str, Spec]:
    """Arrays of one example of any source."""
    return next(iter(self.sources.values())).spec

  @property
  def metadata(self) -> Metadata:
    """Facts that all sources share, and where they come from."""
    known = [x.metadata for x in self.sources.values()]
    shared = {k: v for k, v in known[0].items() if all(m.get(k) == v for m in known)}
    share = ', '.join(f'{k} {n / BLOCK:.1%} of {self.sources[k].metadata.get("source", k)}'
                      for k, n in self.counts.items())  # fmt: skip
    sizes = {'vocab_size': max(m.get('vocab_size', 0) for m in known)}
    return shared | {k: v for k, v in sizes.items() if v} | {'source': share}

  def state(self) -> dict[str, Any]:
    """Returns the fitted values, which all sources share."""
    return _state(next(iter(self.sources.values())))

  def digest(self) -> str:
    """SHA-256 of the sources' digests."""
    parts = [
      f'{k} {x.digest() if isinstance(x, Digested) else ""}' for k, x in self.sources.items()
    ]
    return hashlib.sha256('\n'.join(parts).encode()).hexdigest()

  def indices(self, positions: np.ndarray, batch_size: int) -> tuple[np.ndarray, None]:
    """Maps positions int64 [n] to indices int64 [n]: number of the source · 2^40 + its index."""
    if not self.train:
      return self._one_after_another(positions % self.size), None
    blocks, places = np.divmod(positions, BLOCK)
    source, rank = np.empty(len(positions), np.int64), np.empty(len(positions), np.int64)
    for block in np.unique(blocks):
      here = blocks == block
      chosen, ranks = self._block(int(block))
      source[here], rank[here] = chosen[places[here]], ranks[places[here]]
    found = np.empty(len(positions), np.int64)
    for number, (name, examples) in enumerate(self.sources.items()):
      here = np.flatnonzero(source == number)
      own = blocks[here] * self.counts[name] + rank[here]
      order = np.argsort(own, kind='stable')
      composer = composer_of(examples)
      if composer is not None:
        read = composer.indices(own[order], 1)[0]
      else:
        read = in_order(own[order], examples.size, self.seed, True, streams.MIX + number)
      found[here[order]] = read + (number << SOURCE_BITS)
    return found, None

  def _one_after_another(self, places: np.ndarray) -> np.ndarray:
    ends = np.cumsum([x.size for x in self.sources.values()])
    number = np.searchsorted(ends, places, 'right')
    own = places - np.concatenate([[0], ends[:-1]])[number]
    for i, examples in enumerate(self.sources.values()):
      here, composer = np.flatnonzero(number == i), composer_of(examples)
      if composer is not None and len(here):
        own[here] = composer.indices(own[here], 1)[0]
    return own + (number << SOURCE_BITS)

  @functools.cached_property
  def _block(self) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    """Draws a block -> (source of each position, count of this source before it in the block)."""
    plain = np.repeat(np.arange(len(self.counts)), list(self.counts.values()))

    def block(number):
      chosen = streams.generator(self.seed, streams.MIX_BLOCK, number).permutation(plain)
      ranks = np.empty(BLOCK, np.int64)
      for source in range(len(self.counts)):
        at = np.flatnonzero(chosen == source)
        ranks[at] = np.arange(len(at))
      return chosen, ranks

    return functools.lru_cache(maxsize=8)(block)

  def rows(self, indices: np.ndarray, positions: np.ndarray) -> HostBatch:
    """Rows of the sources that the indices name."""
    number, own = indices >> SOURCE_BITS, indices & ((1 << SOURCE_BITS) - 1)
    rows: dict[str, np.ndarray] = {}
    for i, examples in enumerate(self.sources.values()):
      here = np.flatnonzero(number == i)
      if not len(here):
        continue
      part = examples.rows(own[here], positions[here])
      for k, v in part.items():
        rows.setdefault(k, np.empty((len(indices), *v.shape[1:]), v.dtype))[here] = v
    return rows


def _state(examples: Examples) -> dict[str, Any]:
  return examples.state() if isinstance(examples, Stateful) else {}


def mix(
  sources: Mapping[str, Examples], weights: Mapping[str, float], seed: int = 0, train: bool = True
) -> Mix:
  """Mixes data parts, for recipes: see `Mix`."""
  return Mix(sources, weights, seed, train)
