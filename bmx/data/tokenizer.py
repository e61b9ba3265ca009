"""Text to token ids and back: bytes, or sub-words by Hugging Face `tokenizers`."""

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from bmx.core import cache
from bmx.core.errors import InputError
from bmx.data.documents import documents

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
BERT_SPECIAL = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')  # ids 0 to 4 of what is trained here


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
  def text(self) -> str:
    """As `tokenizer.json` holds it; '' where there is no such file."""
    ...

  def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Ids of each text, int32 [n], without special tokens."""
    ...

  def starts(self, texts: Sequence[str]) -> list[np.ndarray]:
    """For each id of `encode`, whether a word begins there: bool [n]."""
    ...

  def decode(self, ids: Sequence[int]) -> str: ...


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
  def text(self) -> str:
    return ''

  def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [np.frombuffer(t.encode(), np.uint8).astype(np.int32) for t in texts]

  def starts(self, texts: Sequence[str]) -> list[np.ndarray]:
    space = [np.isin(ids, (9, 10, 13, 32)) for ids in self.encode(texts)]
    return [~s & np.concatenate([[True], s[:-1]]) if len(s) else s for s in space]

  def decode(self, ids: Sequence[int]) -> str:
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
    return self.inner.get_vocab_size()

  @property
  def special(self) -> dict[str, int]:
    return self._special

  @functools.cached_property
  def _special(self) -> dict[str, int]:
    found = {role: [self.inner.token_to_id(s) for s in names] for role, names in ROLES.items()}
    found = {role: [i for i in ids if i is not None] for role, ids in found.items()}
    return {role: ids[0] for role, ids in found.items() if ids}

  def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [np.array(e.ids, np.int32) for e in self._encodings(texts)]

  def starts(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [_word_starts(e.word_ids) for e in self._encodings(texts)]

  def _encodings(self, texts: Sequence[str]) -> Any:
    return self.inner.encode_batch(list(texts), add_special_tokens=False)

  def decode(self, ids: Sequence[int]) -> str:
    return self.inner.decode([int(i) for i in ids], skip_special_tokens=True)


def _word_starts(words: Sequence[int | None]) -> np.ndarray:
  return np.array([w is None or i == 0 or w != words[i - 1] for i, w in enumerate(words)], bool)


def library() -> Any:
  try:
    import tokenizers
  except ImportError:
    raise InputError(
      'sub-words need the library tokenizers: pip install "bmx[text]"; bytes need nothing'
    ) from None
  return tokenizers


def load(path: str) -> Subwords:
  """A `tokenizer.json`, or the one in a folder (a run's, or a Hugging Face model's)."""
  file = pathlib.Path(path)
  file = file / 'tokenizer.json' if file.is_dir() else file
  if not path:
    raise InputError('no folder of a tokenizer is named: set --config.init.path=DIR of the run or '
                     'the Hugging Face model to start from')  # fmt: skip
  if not file.is_file():
    raise InputError(f'no tokenizer.json in {path}')
  return Subwords(file.read_text(), str(file))


def trained(
  kind: str = 'wordpiece',
  vocab: int = 10_000,
  paths: Sequence[str] = (),
  field: str = 'text',
  unit: str = 'line',
  data_dir: str = '',
  lowercase: bool = True,
) -> Subwords:
  """A tokenizer learned from texts; kept in the cache folder, so that it is learned once.

  Args:
    kind: 'wordpiece' (BERT's; ids 0 to 4 are [PAD] [UNK] [CLS] [SEP] [MASK]), 'bpe' (on bytes, as
      GPT-2's; id 0 is <|endoftext|>) or 'unigram' (SentencePiece's, the special tokens of
      'wordpiece').
    vocab: ids wanted; a small text gives fewer.
    paths, field, unit, data_dir: see `documents.documents`.
    lowercase: 'wordpiece' and 'unigram' only.
  """
  makers = {'wordpiece': _wordpiece, 'bpe': _bpe, 'unigram': _unigram}
  if kind not in makers:
    raise InputError(f'tokenizer kind {kind!r} is not one of {", ".join(makers)}')
  if vocab < 300:
    raise InputError(f'tokenizer vocab={vocab}: at least 300, which hold all bytes')
  version = library().__version__
  texts = documents(paths, field, unit, data_dir)
  identity = hashlib.sha256(repr((version, kind, vocab, lowercase)).encode())
  for text in texts:
    identity.update(hashlib.sha256(text.encode()).digest())
  file = cache.place('tokenizers') / f'{identity.hexdigest()}.json'
  if file.is_file():
    return Subwords(file.read_text(), str(file))
  inner, trainer = makers[kind](vocab, lowercase)
  inner.train_from_iterator(texts, trainer)
  made = Subwords(inner.to_str(), kind)
  file.parent.mkdir(parents=True, exist_ok=True)
  part = file.with_suffix(f'.{os.getpid()}')
  part.write_text(made.text)
  part.replace(file)
  return made


def _wordpiece(vocab: int, lowercase: bool) -> tuple[Any, Any]:
  t = library()
  inner = t.Tokenizer(t.models.WordPiece(unk_token='[UNK]'))
  inner.normalizer = t.normalizers.BertNormalizer(lowercase=lowercase)
  inner.pre_tokenizer = t.pre_tokenizers.BertPreTokenizer()
  inner.decoder = t.decoders.WordPiece()
  _frame(inner)
  options = {'special_tokens': list(BERT_SPECIAL), 'show_progress': False}
  return inner, t.trainers.WordPieceTrainer(vocab_size=vocab, **options)


def _bpe(vocab: int, lowercase: bool) -> tuple[Any, Any]:
  t = library()
  inner = t.Tokenizer(t.models.BPE())
  inner.pre_tokenizer = t.pre_tokenizers.ByteLevel(add_prefix_space=False)
  inner.decoder = t.decoders.ByteLevel()
  alphabet = t.pre_tokenizers.ByteLevel.alphabet()
  options = {'special_tokens': ['<|endoftext|>'], 'show_progress': False}
  return inner, t.trainers.BpeTrainer(vocab_size=vocab, initial_alphabet=alphabet, **options)


def _unigram(vocab: int, lowercase: bool) -> tuple[Any, Any]:
  t = library()
  inner = t.Tokenizer(t.models.Unigram())
  steps = [t.normalizers.NFKC()] + [t.normalizers.Lowercase()] * lowercase
  inner.normalizer = t.normalizers.Sequence(steps)
  inner.pre_tokenizer = t.pre_tokenizers.Metaspace()
  inner.decoder = t.decoders.Metaspace()
  options = {'special_tokens': list(BERT_SPECIAL), 'unk_token': '[UNK]', 'show_progress': False}
  return inner, t.trainers.UnigramTrainer(vocab_size=vocab, **options)


def _frame(inner: Any) -> None:
  """One sequence is [CLS] A [SEP], two are [CLS] A [SEP] B [SEP] with types 0 and 1."""
  inner.post_processor = library().processors.TemplateProcessing(
    single='[CLS] $A [SEP]',
    pair='[CLS] $A [SEP] $B:1 [SEP]:1',
    special_tokens=[(name, BERT_SPECIAL.index(name)) for name in ('[CLS]', '[SEP]')],
  )
