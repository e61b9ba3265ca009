"""Targets of a text decoder: texts as rows of tokens, beside sources of any kind.

N examples, T tokens of a row.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bmx.core.data import Described, Digested, Resident, Spec, Stateful
from bmx.core.errors import InputError
from bmx.core.types import Batch, HostBatch, Metadata
from bmx.data.text.documents import whole
from bmx.data.text.tokenizer import Subwords, Tokenizer, frame
from bmx.data.text.windows import along, tokenizer_state

TRANSCRIPT = ('transcript', 'transcript_length')  # keys of rows whose ids are the target's
FIT = 'target'  # key of `state`: how texts become rows


@dataclasses.dataclass(frozen=True)
class Target:
  """How a text becomes a row of a decoder: `begin`, the text, an end.

  Attributes:
    tokenizer: of the texts; it has an end of text.
    length: T, tokens of a row, `begin` without its first token and the end included.
    begin: ids before a text; () is those that the tokenizer puts there, or else its end.
    lower: whether texts are written in lower case.

  Raises:
    InputError: a tokenizer without an end of text, a row that is too short.
  """

  tokenizer: Tokenizer
  length: int
  begin: tuple[int, ...] = ()
  lower: bool = False

  def __post_init__(self):
    around = frame(self.tokenizer)
    if not around.suffix:
      raise InputError('data.tokenizer: expected one with an end of text, such as '
                       'bmx.data.text.tokenizer_train:trained with kind=bpe')  # fmt: skip
    object.__setattr__(self, 'begin', tuple(self.begin) or around.prefix or around.suffix[:1])
    least = len(self.begin) + 1
    if self.length < least:
      raise InputError(f'length={self.length}: expected at least {least} tokens')

  @property
  def facts(self) -> Metadata:
    """Facts of data with such rows."""
    return {
      'vocab_size': self.tokenizer.size, 'length': self.length, 'begin': list(self.begin),
      'ends': list(self.tokenizer.ends),
    }  # fmt: skip

  @property
  def state(self) -> dict[str, Any]:
    """What `restored` needs, as JSON holds it."""
    own = {FIT: {'length': self.length, 'begin': list(self.begin), 'lower': self.lower}}
    return tokenizer_state(self.tokenizer) | own

  def plain(self, text: str) -> str:
    """Returns a text with single blanks between words, in lower case where `lower`."""
    return plain(text, self.lower)

  def encode(self, text: str, where: str) -> list[int]:
    """Returns the ids of a text, see `plain`, without those around it.

    Raises InputError, with the name `where`, for an empty text and one that is too long.
    """
    text = self.plain(text)
    if not text:
      raise InputError(f'{where} is empty: expected a text; add it, or remove the example')
    try:
      ids = self.tokenizer.encode([whole(text, where)])[0].tolist()
    except InputError as error:
      raise InputError(f'{where}, {text!r:.60}: {error}') from None
    size = len(self.begin) + len(ids)
    if size > self.length:
      raise InputError(
        f'{where} has {size} tokens, begin and end included: expected at most length='
        f'{self.length}; set --config.data.length, or shorten it'
      )
    return ids

  def rows(self, ids: Sequence[Sequence[int]]) -> HostBatch:
    """Returns `tokens`, `targets` int32 [N, T] and `weights` float32 [N, T], 0 behind the end."""
    tokens, targets = (np.zeros((len(ids), self.length), np.int32) for _ in range(2))
    weights = np.zeros((len(ids), self.length), np.float32)
    end = frame(self.tokenizer).suffix[0]
    for n, own in enumerate(ids):
      row = [*self.begin, *own, end]
      tokens[n, : len(row) - 1], targets[n, : len(row) - 1] = row[:-1], row[1:]
      weights[n, : len(row) - 1] = 1
    return {'tokens': tokens, 'targets': targets, 'weights': weights}

  def unknown(self, count: int) -> HostBatch:
    """Returns rows without targets: `begin`, and weights of 0."""
    tokens = np.zeros((count, self.length), np.int32)
    tokens[:, : len(self.begin)] = self.begin
    return {'tokens': tokens, 'weights': np.zeros(tokens.shape, np.float32)}

  def text(self, ids: np.ndarray) -> str:
    """Returns the text of ids, negative ones left out."""
    return self.tokenizer.decode(ids[ids >= 0]).strip()


def plain(text: str, lower: bool) -> str:
  """Returns a text with single blanks between words, in lower case where `lower`."""
  text = ' '.join(text.split())
  return text.lower() if lower else text


def target_of(
  tokenizer: Tokenizer | None,
  length: int,
  begin: Sequence[int] = (),
  lower: bool = False,
  fitted: Mapping[str, Any] | None = None,
) -> Target | None:
  """Returns how texts become rows of a decoder; None for data without tokenizer and length.

  Args:
    tokenizer: of the texts.
    length: tokens of a row.
    begin: see `Target`.
    lower: see `Target`.
    fitted: `state()` of the training data, which counts where it has such rows.

  Raises:
    InputError: one of tokenizer and length without the other.
  """
  known = (fitted or {}).get(FIT)
  if fitted and known:
    text, names = fitted['tokenizer'], fitted.get('special_tokens')
    own = tokenizer or Subwords(text, 'the tokenizer in data.json', names)
    return Target(own, int(known['length']), tuple(known['begin']), bool(known['lower']))
  if tokenizer is None and not length:
    return None
  if tokenizer is None:
    raise InputError(f'data.length={length}: expected a tokenizer of the texts, such as '
                     'bmx.data.text.tokenizer:load, or length=0')  # fmt: skip
  return Target(tokenizer, length, tuple(begin), lower)


def target_spec(length: int, known: bool = True) -> dict[str, Spec]:
  """Returns the specs of a row; `known`: whether targets are."""
  spec = {'tokens': along(length), 'weights': along(length, np.float32)}
  return spec | ({'targets': along(length)} if known else {})


@dataclasses.dataclass
class TargetData:
  """Examples of a source, such as features or images, each with a text for a decoder.

  Attributes:
    source: the examples. Ids of texts are their `transcript` int [N, L], of `transcript_length`.
    target: how texts become rows.
    ids: of the text of each example, instead of a transcript; None: the source has transcripts, or
      texts are not known.
    texts: of each example, for people and metrics; () decodes the targets.
  """

  source: Any
  target: Target
  ids: Sequence[Sequence[int]] | None = None
  texts: Sequence[str] = ()

  def __post_init__(self):
    self.known = self.ids is not None or TRANSCRIPT[0] in self.source.spec
    kept = {k: v for k, v in self.source.spec.items() if k not in (*TRANSCRIPT, 'weights')}
    self.spec = kept | target_spec(self.target.length, self.known)

  @property
  def size(self) -> int:
    """Number of examples."""
    return self.source.size

  @property
  def metadata(self) -> Metadata:
    """Facts of the source and of the texts."""
    return {**self.source.metadata, **self.target.facts}

  def rows(self, indices: np.ndarray, positions: np.ndarray) -> HostBatch:
    """Returns rows of the source, augmented in training, with those of the texts."""
    return self._with_targets(self.source.rows(indices, positions), indices)

  def resident(self) -> HostBatch | None:
    """Returns all arrays, if those of the source may be held on the device."""
    found = self.source.resident() if isinstance(self.source, Resident) else None
    return None if found is None else self._with_targets(found, np.arange(self.size))

  def gather(self, arrays: Any, indices: Any) -> Batch:
    """Gathers rows of the arrays on the device."""
    return self.source.gather(arrays, indices)

  def _with_targets(self, rows: HostBatch, indices: np.ndarray) -> HostBatch:
    kept = {k: v for k, v in rows.items() if k not in (*TRANSCRIPT, 'weights')}
    if not self.known:
      return kept | self.target.unknown(len(indices))
    if self.ids is not None:
      return kept | self.target.rows([self.ids[int(i)] for i in indices])
    pairs = zip(rows[TRANSCRIPT[0]], rows[TRANSCRIPT[1]], strict=True)
    return kept | self.target.rows([ids[:n].tolist() for ids, n in pairs])

  def state(self) -> dict[str, Any]:
    """How sources become arrays, the tokenizer, and how texts become rows."""
    own = self.source.state() if isinstance(self.source, Stateful) else {}
    return own | self.target.state

  def describe(self, indices: np.ndarray) -> list[dict[str, Any]]:
    """What the source says of its examples."""
    if not isinstance(self.source, Described):
      return [{} for _ in indices]
    return self.source.describe(indices)

  def digest(self) -> str:
    """Returns the SHA-256 of the source and of the ids of texts."""
    own = self.source.digest() if isinstance(self.source, Digested) else ''
    known = None if self.ids is None else [list(ids) for ids in self.ids]
    total = hashlib.sha256(own.encode())
    total.update(repr([self.target.length, self.target.begin, known]).encode())
    return total.hexdigest()

  def present(self, predictions: HostBatch) -> list[dict[str, Any]]:
    """Returns {'row', 'prediction', 'score', 'target'} of each example, and what the source says.

    Args:
      predictions: of the first examples, in order: 'prediction' int [N, n], ids of the texts,
        negative behind them; 'score' float [N]; 'targets' and 'weights' where texts are known.
    """
    found = []
    about = self.describe(np.arange(len(predictions['prediction'])))
    for n, (line, ids) in enumerate(zip(about, predictions['prediction'], strict=True)):
      line = {'row': n + 1, **line, 'prediction': self.target.text(ids)}
      if 'score' in predictions:
        line['score'] = float(predictions['score'][n])
      found.append(line | ({'target': self._reference(predictions, n)} if self.known else {}))
    return found

  def _reference(self, predictions: HostBatch, n: int) -> str:
    if self.texts:
      return self.texts[n]
    ids = predictions['targets'][n][predictions['weights'][n] > 0]
    return self.target.text(ids[len(self.target.begin) - 1 : -1])
