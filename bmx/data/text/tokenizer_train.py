"""Tokenizers trained on texts: WordPiece, byte-level BPE and Unigram."""

import collections
import hashlib
import os
from collections.abc import Sequence
from typing import Any

import jax

from bmx.core.errors import InputError
from bmx.data.records import read_text
from bmx.data.text.documents import documents
from bmx.data.text.steps import Step
from bmx.data.text.tokenizer import Subwords, library
from bmx.runtime import cache

BERT_SPECIAL = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')  # ids 0 to 4
KINDS = ('wordpiece', 'bpe', 'unigram')
END = '<|endoftext|>'
LEARNED = 2  # raised when the same text gives another tokenizer: cached ones are then not used


def trained(
  kind: str = 'wordpiece',
  vocab_size: int = 10_000,
  paths: Sequence[str] = (),
  field: str = 'text',
  unit: str = 'line',
  data_dir: str = '',
  lowercase: bool = True,
  steps: Sequence[Step] = (),
  path: str = '',
  other: str = '',
) -> Subwords:
  """Trains a tokenizer on texts, once: the cache folder keeps it.

  The same texts give the same tokenizer, except for 'unigram': the order of its sums varies.

  Args:
    kind: 'wordpiece' (BERT's; ids 0 to 4 are `[PAD] [UNK] [CLS] [SEP] [MASK]`), 'bpe' (on bytes,
      as GPT-2's; id 0 is `<|endoftext|>`) or 'unigram' (SentencePiece's, the special tokens of
      'wordpiece').
    vocab_size: ids wanted; a small text gives fewer. Of more letters than fit, the rarest are
      `[UNK]`.
    paths: files of text, see `documents.documents`; () is the standard library's source.
    field: of the text in a record of .jsonl, .csv and TFDS.
    unit: of plain text that is one document: 'file', 'paragraph' or 'line'.
    data_dir: of TFDS.
    steps: functions that clean the documents, see `documents.documents`.
    path: one more file of text.
    other: and another one, of translations for instance.
    lowercase: 'wordpiece' and 'unigram' only.
  """
  paths = (*paths, *(p for p in (path, other) if p))
  _check(kind, vocab_size)
  return learned(documents(paths, field, unit, data_dir, steps), kind, vocab_size, lowercase)


def listed(words: Sequence[str]) -> Subwords:
  """Returns a tokenizer of a few words, one token each, between blanks; id 0 ends a text.

  Args:
    words: of the ids 1, 2, ...; other words have no encoding.

  Raises:
    InputError: no words, a word twice, one with a blank.
  """
  if not words or len({*words}) < len(words) or any(len(w.split()) != 1 for w in words):
    raise InputError(f'tokenizer.words={tuple(words)}: expected different words without blanks')
  t = library()
  ids = {word: i for i, word in enumerate((END, *words))}
  inner = t.Tokenizer(t.models.WordLevel(ids, unk_token=None))
  inner.pre_tokenizer = t.pre_tokenizers.WhitespaceSplit()
  inner.add_special_tokens([END])
  return Subwords(inner.to_str(), 'words')


def learned(texts: Sequence[str], kind: str, vocab_size: int, lowercase: bool = True) -> Subwords:
  """Trains a tokenizer on these texts; the arguments are those of `trained`."""
  _check(kind, vocab_size)
  makers = {'wordpiece': _wordpiece, 'bpe': _bpe, 'unigram': _unigram}
  version = library().__version__
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


def _check(kind: str, vocab_size: int) -> None:
  """Raises InputError for a tokenizer that cannot be trained."""
  if kind not in KINDS:
    raise InputError(f'tokenizer kind {kind!r} is not one of {", ".join(KINDS)}')
  if vocab_size < 300:
    raise InputError(f'vocab_size={vocab_size}: expected at least 300, which hold all bytes')
  if kind == 'unigram' and jax.process_count() > 1:
    raise InputError(
      "tokenizer kind 'unigram' is not learned the same in each of several processes: learn it in "
      'one, and name its file with bmx.data.text.tokenizer:load'
    )


def _wordpiece(texts: Sequence[str], vocab: int, lowercase: bool) -> Any:
  """Trains WordPiece, deterministically.

  The library numbers the letters within words in the order in which it meets them, which varies,
  and breaks ties by number. So their list is learned first, and given to it sorted.
  """
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
  """Returns the letters that begin words, then those within them (##a), each sorted."""
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
  options = {'special_tokens': [END], 'show_progress': False}
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
  """Frames one sequence as [CLS] A [SEP], two as [CLS] A [SEP] B [SEP] with types 0 and 1."""
  inner.post_processor = library().processors.TemplateProcessing(
    single='[CLS] $A [SEP]',
    pair='[CLS] $A [SEP] $B:1 [SEP]:1',
    special_tokens=[(name, BERT_SPECIAL.index(name)) for name in ('[CLS]', '[SEP]')],
  )
  return inner
