"""Columns of click models: numbers, and categories as row numbers of embedding tables."""

import dataclasses
import hashlib
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bmx.core.errors import InputError, did_you_mean
from bmx.core.ranges import check_number
from bmx.core.types import HostBatch
from bmx.data.columns import category_line, chosen, kind_of, log_columns, names_of
from bmx.data.encoder import TabularEncoder
from bmx.data.records import Record, number

log = logging.getLogger('bmx')
UNKNOWN = 0  # row of a listed column for categories that are not listed
CROSS = '*'  # between two columns of a cross


def bucket(column: str, category: str, buckets: int) -> int:
  """Hashes a category: the first 8 bytes of BLAKE2b of 'COLUMN=CATEGORY', modulo `buckets`.

  UTF-8, little-endian; the same in every process, on every machine and version of Python.

  Source: RFC 7693; Weinberger et al. 2009 for hashed categories.

  >>> bucket('site', 'a.com', 1000), bucket('site', 'b.com', 1000)
  (245, 572)
  """
  digest = hashlib.blake2b(f'{column}={category}'.encode(), digest_size=8).digest()
  return int.from_bytes(digest, 'little') % buckets


@dataclasses.dataclass(frozen=True)
class FieldOptions:
  """Options of the columns, see `data.clicks.clicks`."""

  use: Sequence[str] = ()
  drop: Sequence[str] = ()
  categorical: Sequence[str] = ()
  hashed: Sequence[str] = ()
  buckets: int = 100_000
  crosses: Sequence[str] = ()
  min_count: int = 2
  log: Sequence[str] = ()

  def __post_init__(self):
    check_number('data.buckets', self.buckets, at_least=2, below=2**31)
    check_number('data.min_count', self.min_count, at_least=1)
    for cross in self.crosses:
      if len(cross.split(CROSS)) != 2:
        raise InputError(f"data.crosses={cross!r}: expected two columns, such as 'site*device'")
    for name in self.hashed:
      if CROSS in name:
        raise InputError(
          f'data.hashed={name!r}: expected a name without {CROSS}; rename the column'
        )


@dataclasses.dataclass(frozen=True)
class FieldEncoder:
  """Numbers standardized, categories as row numbers of one table for each column.

  Attributes:
    numbers: columns of numbers and dates.
    logarithms: of these, numbers x that become sign(x) · log(1 + |x|) first.
    listed: column -> categories of its rows 1, 2, ...; all others share row 0.
    hashed: column, or cross 'A*B' -> rows that its categories are hashed into, see `bucket`.
  """

  numbers: TabularEncoder
  logarithms: tuple[str, ...]
  listed: dict[str, list[str]]
  hashed: dict[str, int]

  @classmethod
  def fit(
    cls,
    records: Sequence[Record],
    skip: Sequence[str],
    missing: str,
    source: str,
    fields: FieldOptions,
  ) -> 'FieldEncoder':
    """Learns columns from the records of the training part, and logs how each is read.

    Args:
      records: of the training part.
      skip: columns that are not inputs.
      missing: the text of a missing number.
      source: of the records.
      fields: options.

    Raises:
      InputError: an unknown column, or a column that is mostly, but not always, a number.
    """
    known = names_of(records)
    parts = [part for cross in fields.crosses for part in cross.split(CROSS)]
    for names in (fields.categorical, fields.hashed, fields.log, parts):
      chosen(known, names, (), (), source)
    names = chosen(known, fields.use, fields.drop, skip, source)
    forced = {*fields.categorical, *fields.hashed}
    kind = lambda n: kind_of(n, [r.get(n) for r in records], missing, source)
    kinds = {n: 'category' if n in forced else kind(n) for n in names}
    categories = [n for n in names if kinds[n] == 'category']
    logs = tuple(n for n in names if n in fields.log and kinds[n] == 'number')
    wrong = [n for n in fields.log if n in names and kinds[n] not in ('number', 'empty')]
    if wrong:
      raise InputError(
        f'data.log={wrong[0]!r}: expected a column of numbers, not {kinds[wrong[0]]}'
      )
    others = [n for n in names if n not in categories]
    dropped = [n for n in known if n not in names and n not in skip]
    numbers = TabularEncoder.fit(logarithmic(records, logs), (*skip, *categories), missing, source,
                                 (*others, *dropped), dropped)  # fmt: skip
    listed, lines = {}, []
    for name in (n for n in categories if n not in fields.hashed):
      listed[name], line = _list(name, records, fields.min_count)
      lines.append(line)
    hashed = {n: fields.buckets for n in (*categories, *fields.crosses)
              if n in fields.hashed or n in fields.crosses}  # fmt: skip
    lines += [f'{n}: category, hashed into {b:,} rows' for n, b in hashed.items()]
    if lines:
      log_columns(source, lines)
    return cls(numbers, logs, listed, hashed)

  @property
  def sizes(self) -> tuple[int, ...]:
    """Rows of each column of categories, in the order of `encode`."""
    return (*(1 + len(known) for known in self.listed.values()), *self.hashed.values())

  @property
  def columns(self) -> tuple[str, ...]:
    """Columns of categories that records have, crosses apart."""
    parts = [part for name in self.hashed for part in self._parts(name)]
    return tuple(dict.fromkeys([*self.listed, *parts]))

  @property
  def num_numeric(self) -> int:
    """Columns of numbers and dates."""
    return len(self.numbers.numeric) + len(self.numbers.dates)

  def state(self) -> dict[str, Any]:
    """Returns the fitted values, as JSON holds them."""
    return dataclasses.asdict(self)

  @classmethod
  def restore(cls, state: Mapping[str, Any]) -> 'FieldEncoder':
    """Inverse of `state`."""
    listed = {k: [str(x) for x in v] for k, v in state['listed'].items()}
    hashed = {k: int(v) for k, v in state['hashed'].items()}
    logs = tuple(str(k) for k in state['logarithms'])
    return cls(TabularEncoder.restore(state['numbers']), logs, listed, hashed)

  def encode(
    self, records: Sequence[Record], source: str, optional: Sequence[str] = (), new: bool = True
  ) -> HostBatch:
    """Encodes records -> `x` float32 [N, numbers] and `ids` int32 [N, columns of categories].

    Args:
      records: with the columns of the training data.
      source: of them.
      optional: columns that may be present and are not encoded.
      new: logs the categories that are not listed.

    Raises:
      InputError: columns that are not those of the training data; an invalid number.
    """
    columns = self.columns
    self._check(names_of(records), source)
    x = np.zeros((len(records), 0), np.float32)
    if self.num_numeric:
      given = logarithmic(records, self.logarithms)
      x = self.numbers.encode(given, source, (*optional, *columns))
    ids = np.zeros((len(records), len(self.sizes)), np.int32)
    for i, (name, known) in enumerate(self.listed.items()):
      row = {category: j for j, category in enumerate(known, 1)}
      ids[:, i] = [row.get(_text(r.get(name)), UNKNOWN) for r in records]
    for i, (name, buckets) in enumerate(self.hashed.items(), len(self.listed)):
      texts = ['\x1f'.join(_text(r.get(part)) for part in self._parts(name)) for r in records]
      place = {text: bucket(name, text, buckets) for text in set(texts)}
      ids[:, i] = [place[text] for text in texts]
    if new:
      self._warn(ids, source)
    return {'x': x, 'ids': ids}

  def _parts(self, name: str) -> list[str]:
    """The columns of a cross; of a column, itself."""
    left, _, right = name.partition(CROSS)
    return [left, right] if right else [name]

  def _check(self, given: Sequence[str], source: str) -> None:
    missing = [k for k in self.columns if k not in given]
    if missing:
      raise InputError(f'{source}: expected the columns of the training data; missing '
                       f'{missing[0]!r}{did_you_mean(missing[0], given)}')  # fmt: skip

  def _warn(self, ids: np.ndarray, source: str) -> None:
    counts = (ids[:, : len(self.listed)] == UNKNOWN).sum(0)
    shown = [f'{k} {n}' for k, n in zip(self.listed, counts, strict=True) if n]
    if shown:
      log.warning('%s: categories that are not listed and share one row, in records: %s', source,
                  ', '.join(shown))  # fmt: skip


def logarithmic(records: Sequence[Record], names: Sequence[str]) -> Sequence[Record]:
  """Returns records whose numbers x in some columns are sign(x) · log(1 + |x|).

  Cells that are not finite numbers stay as they are.
  """
  if not names:
    return records
  return [{**r, **{n: _logarithm(r.get(n)) for n in names}} for r in records]


def _logarithm(value: Any) -> Any:
  x = number(value)
  return value if x is None or not math.isfinite(x) else math.copysign(math.log1p(abs(x)), x)


def _list(name: str, records: Sequence[Record], min_count: int) -> tuple[list[str], str]:
  """Returns the categories of at least `min_count` records, sorted, and a line for people."""
  counts = Counter(_text(r.get(name)) for r in records)
  kept = sorted(k for k, n in counts.items() if n >= min_count)
  rare = sum(n for n in counts.values() if n < min_count)
  line = category_line(name, list(counts), len(records))
  return kept, f'{line}; {len(kept)} listed, others in {rare} records' if rare else line


def _text(value: Any) -> str:
  """Returns the category that a cell names; '' if it is missing."""
  return '' if value is None else str(value)
