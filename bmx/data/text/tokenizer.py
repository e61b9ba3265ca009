"""Text to token ids and back: bytes, or sub-words by Hugging Face `tokenizers`."""

import collections
import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from bmx.core.errors import InputError
from bmx.data.records import read_text
from bmx.data.text.clean import Step
from bmx.data.text.documents import documents
from bmx.runtime import cache

# What a special token is for -> the spellings that published tokenizers use.
ROLES = {
  'pad': ('[PAD]', '<pad>', '<|pad|>', '<|finetune_right_pad_id|>'),
  'unk': ('[UNK]', '<unk>'),
  'cls': ('[CLS]', '<s>'),
  'sep': ('[SEP]', '</s>'),
  'mask': ('[MASK]', '<mask>'),
  'bos': ('<|begin_of_text|>', '<bos>'),
  'eos': ('<|endoftext|>', '<|end_of_text|>', '<|eot_id|>', '<|im_end|>', '<eos>'),
}
# Tokens that end a text, whichever of them a model was trained with.
ENDS = ('<|endoftext|>', '<|end_of_text|>', '<|eot_id|>', '<|im_end|>', '<eos>', '</s>')


@dataclasses.dataclass(frozen=True)
class Frame:
  """What stands around a document: ids before and after it; `whole`: also around its parts, where
  it is cut."""

  prefix: tuple[int, ...]
  suffix: tuple[int, ...]
  whole: bool


def frame(special: Mapping[str, int]) -> Frame:
  """[CLS] and [SEP] of an encoder's tokenizer, or the begin and end of text of a decoder's, as far
  as there are.

  >>> frame({'bos': 1, 'eos': 2}), frame({'cls': 3, 'sep': 4})
  (Frame(prefix=(1,), suffix=(2,), whole=False), Frame(prefix=(3,), suffix=(4,), whole=True))
  """
  whole = 'cls' in special and 'sep' in special
  ids = lambda role: (special[role],) if role in special else ()
  return Frame(ids('cls' if whole else 'bos'), ids('sep' if whole else 'eos'), whole)


def special_facts(special: Mapping[str, int]) -> dict[str, Any]:
  """What a task that masks must agree with: all special ids, and that of [MASK] (-1 is none).

  >>> special_facts({'cls': 2, 'pad': 0})
  {'special': (0, 2), 'mask': -1}
  """
  return {'special': tuple(sorted({*special.values()})), 'mask': special.get('mask', -1)}


BERT_SPECIAL = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')  # ids 0 to 4 of what is trained here
LEARNED = 2  # raised where the same text would give another tokenizer: what was kept is not used


@runtime_checkable
class Tokenizer(Protocol):
  """Text to ids and back."""

  @property
  def size(self) -> int:
    """Ids are below this."""
    ...

  @property
  def special(self) -> dict[str, int]:
    """Role -> id of the special tokens there are; roles are the keys of `ROLES`."""
    ...

  @property
  def ends(self) -> tuple[int, ...]:
    """Ids that end a text."""
    ...

  @property
  def text(self) -> str:
    """As `tokenizer.json` holds it; '' where there is no such file."""
    ...

  def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Ids of each text, int32 [n], without special tokens."""
    ...

  def word_starts(self, texts: Sequence[str]) -> list[np.ndarray]:
    """For each id of `encode`, whether a word begins there: bool [n]."""
    ...

  def decode(self, ids: Sequence[int] | np.ndarray) -> str: ...


@dataclasses.dataclass(frozen=True)
class Bytes:
  """One token a byte: needs no file and loses nothing."""

  @property
  def size(self) -> int:
    return 256

  @property
  def special(self) -> dict[str, int]:
    return {}

  @property
  def ends(self) -> tuple[int, ...]:
    return ()

  @property
  def text(self) -> str:
    return ''

  def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [np.frombuffer(t.encode(), np.uint8).astype(np.int32) for t in texts]

  def word_starts(self, texts: Sequence[str]) -> list[np.ndarray]:
    space = [np.isin(ids, (9, 10, 13, 32)) for ids in self.encode(texts)]
    return [~s & np.concatenate([[True], s[:-1]]) if len(s) else s for s in space]

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    return bytes(int(i) for i in ids).decode(errors='replace')


class Subwords:
  """A `tokenizer.json` of Hugging Face's `tokenizers`.

  Raises InputError: it is none, or the library is not installed.
  """

  def __init__(self, text: str, source: str = 'tokenizer.json'):
    self._text = text
    try:
      self.inner = library().Tokenizer.from_str(text)
    except InputError:
      raise
    except Exception as error:  # the library raises plain Exceptions
      raise InputError(f'{source} is no tokenizer.json: {error}') from None
    self.inner.no_truncation()
    self.inner.no_padding()

  def __eq__(self, other: object) -> bool:
    return isinstance(other, Subwords) and other.text == self.text

  def __hash__(self) -> int:
    return hash(self.text)

  @property
  def text(self) -> str:
    return self._text

  @property
  def size(self) -> int:
    return self._size

  @functools.cached_property
  def _size(self) -> int:
    return max(self.inner.get_vocab().values(), default=-1) + 1  # some files leave ids out

  @property
  def special(self) -> dict[str, int]:
    return self._special

  @property
  def ends(self) -> tuple[int, ...]:
    found = {self.inner.token_to_id(name) for name in ENDS} - {None}
    return tuple(sorted({*found, *frame(self.special).suffix}))

  @functools.cached_property
  def _special(self) -> dict[str, int]:
    found = {role: [self.inner.token_to_id(s) for s in names] for role, names in ROLES.items()}
    found = {role: [i for i in ids if i is not None] for role, ids in found.items()}
    return {role: ids[0] for role, ids in found.items() if ids}

  def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [np.array(e.ids, np.int32) for e in self._encodings(texts)]

  def word_starts(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [_word_starts(e.word_ids) for e in self._encodings(texts)]

  def _encodings(self, texts: Sequence[str]) -> Any:
    return self.inner.encode_batch(list(texts), add_special_tokens=False)

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    return self.inner.decode([int(i) for i in ids], skip_special_tokens=True)


def _word_starts(words: Sequence[int | None]) -> np.ndarray:
  return np.array([w is None or i == 0 or w != words[i - 1] for i, w in enumerate(words)], bool)


def library() -> Any:
  try:
    import tokenizers
  except ImportError:
    raise InputError(
      'sub-words need the library tokenizers: pip install "bmx-jax[text]"; bytes need nothing'
    ) from None
  return tokenizers


def load(path: str) -> Subwords:
  """A `tokenizer.json`, or the one in a folder (a run's, or a Hugging Face model's)."""
  file = pathlib.Path(path)
  file = file / 'tokenizer.json' if file.is_dir() else file
  if not path:
    raise InputError('no folder of a tokenizer is named: set --config.init.path=DIR of the run or '
                     'the Hugging Face model to start from')  # fmt: skip
  if not pathlib.Path(path).exists():
    raise InputError(f'there is no {path}, which is to hold a tokenizer.json')
  if not file.is_file():
    raise InputError(f'no tokenizer.json in {path}')
  return Subwords(read_text(file), str(file))


def trained(
  kind: str = 'wordpiece',
  vocab_size: int = 10_000,
  paths: Sequence[str] = (),
  field: str = 'text',
  unit: str = 'line',
  data_dir: str = '',
  lowercase: bool = True,
  steps: Sequence[Step] = (),
) -> Subwords:
  """A tokenizer learned from texts; kept in the cache folder, so that it is learned once.

  The same texts give the same tokenizer, but for 'unigram': its training sums in another order each
  time.

  Args:
    kind: 'wordpiece' (BERT's; ids 0 to 4 are [PAD] [UNK] [CLS] [SEP] [MASK]), 'bpe' (on bytes, as
      GPT-2's; id 0 is <|endoftext|>) or 'unigram' (SentencePiece's, the special tokens of
      'wordpiece').
    vocab_size: ids wanted; a small text gives fewer. Of more letters than fit, the rarest are
      [UNK].
    paths, field, unit, data_dir, steps: see `documents.documents`.
    lowercase: 'wordpiece' and 'unigram' only.
  """
  makers = {'wordpiece': _wordpiece, 'bpe': _bpe, 'unigram': _unigram}
  if kind not in makers:
    raise InputError(f'tokenizer kind {kind!r} is not one of {", ".join(makers)}')
  if vocab_size < 300:
    raise InputError(f'vocab_size={vocab_size}: expected at least 300, which hold all bytes')
  if kind == 'unigram' and jax.process_count() > 1:
    raise InputError(
      "tokenizer kind 'unigram' is not learned the same in each of several processes: learn it in "
      'one, and name its file with bmx.data.text.tokenizer:load'
    )
  version = library().__version__
  texts = documents(paths, field, unit, data_dir, steps)
  identity = hashlib.sha256(repr((LEARNED, version, kind, vocab_size, lowercase)).encode())
  for text in texts:
    identity.update(hashlib.sha256(text.encode()).digest())
  file = cache.place('tokenizers') / f'{identity.hexdigest()}.json'
  if file.is_file():
    return Subwords(read_text(file), str(file))
  try:
    inner = makers[kind](texts, vocab_size, lowercase)
  except Exception as error:
    if type(error) is not Exception:  # the library raises plain ones
      raise
    raise InputError(f'tokenizer kind={kind}, vocab_size={vocab_size}: {error}') from None
  made = Subwords(inner.to_str(), kind)
  file.parent.mkdir(parents=True, exist_ok=True)
  part = file.with_suffix(f'.{os.getpid()}')
  part.write_bytes(made.text.encode())
  part.replace(file)
  return made


def _wordpiece(texts: Sequence[str], vocab: int, lowercase: bool) -> Any:
  """The library numbers the letters within words in the order in which it meets them, another one
  each time, and breaks ties by number. So their list is learned first, and given to it sorted."""
  t, special = library(), list[str](BERT_SPECIAL)
  inner, letters = _letters(texts, _wordpieces(lowercase), special)
  limits: dict[str, Any] = {}
  if len(special) + len(letters) > vocab:  # each may stand alone and within a word
    kept = _frequent(texts, inner.normalizer, (vocab - len(special)) // 2)
    limits = {'initial_alphabet': kept, 'limit_alphabet': len(kept)}
    _, letters = _letters(texts, _wordpieces(lowercase), special, **limits)
  trainer = t.trainers.WordPieceTrainer(
    vocab_size=vocab, special_tokens=special + letters, show_progress=False, **limits
  )
  inner = _wordpieces(lowercase)
  inner.train_from_iterator(texts, trainer)
  inner = _wordpieces(lowercase, inner.get_vocab(with_added_tokens=False))
  inner.add_special_tokens(special)
  inner.decoder = t.decoders.WordPiece()
  return _framed(inner)


def _wordpieces(lowercase: bool, vocab: dict[str, int] | None = None) -> Any:
  t = library()
  inner = t.Tokenizer(t.models.WordPiece(vocab, unk_token='[UNK]'))
  inner.normalizer = t.normalizers.BertNormalizer(lowercase=lowercase)
  inner.pre_tokenizer = t.pre_tokenizers.BertPreTokenizer()
  return inner


def _letters(
  texts: Sequence[str], inner: Any, special: list[str], **limits: Any
) -> tuple[Any, list[str]]:
  """The letters that begin words, then those within them (##a), each sorted."""
  trainer = library().trainers.WordPieceTrainer(
    vocab_size=0, special_tokens=special, show_progress=False, **limits
  )
  inner.train_from_iterator(texts, trainer)
  found = set(inner.get_vocab()) - set(special)
  return inner, sorted(found, key=lambda piece: (len(piece), piece))


def _frequent(texts: Sequence[str], normalizer: Any, count: int) -> list[str]:
  counts = collections.Counter[str]()
  for text in texts:
    counts.update(normalizer.normalize_str(text))
  letters = [c for c in counts if not c.isspace()]
  return sorted(letters, key=lambda c: (-counts[c], c))[:count]


def _bpe(texts: Sequence[str], vocab: int, lowercase: bool) -> Any:
  t = library()
  inner = t.Tokenizer(t.models.BPE())
  inner.pre_tokenizer = t.pre_tokenizers.ByteLevel(add_prefix_space=False)
  inner.decoder = t.decoders.ByteLevel()
  alphabet = t.pre_tokenizers.ByteLevel.alphabet()
  options = {'special_tokens': ['<|endoftext|>'], 'show_progress': False}
  trainer = t.trainers.BpeTrainer(vocab_size=vocab, initial_alphabet=alphabet, **options)
  inner.train_from_iterator(texts, trainer)
  return inner


def _unigram(texts: Sequence[str], vocab: int, lowercase: bool) -> Any:
  t = library()
  inner = t.Tokenizer(t.models.Unigram())
  steps = [t.normalizers.NFKC()] + [t.normalizers.Lowercase()] * lowercase
  inner.normalizer = t.normalizers.Sequence(steps)
  inner.pre_tokenizer = t.pre_tokenizers.Metaspace()
  inner.decoder = t.decoders.Metaspace()
  options = {'special_tokens': list(BERT_SPECIAL), 'unk_token': '[UNK]', 'show_progress': False}
  inner.train_from_iterator(texts, t.trainers.UnigramTrainer(vocab_size=vocab, **options))
  return _framed(inner)


def _framed(inner: Any) -> Any:
  """One sequence is [CLS] A [SEP], two are [CLS] A [SEP] B [SEP] with types 0 and 1."""
  inner.post_processor = library().processors.TemplateProcessing(
    single='[CLS] $A [SEP]',
    pair='[CLS] $A [SEP] $B:1 [SEP]:1',
    special_tokens=[(name, BERT_SPECIAL.index(name)) for name in ('[CLS]', '[SEP]')],
  )
  return inner
