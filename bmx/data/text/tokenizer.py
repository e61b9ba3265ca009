"""Tokenizers, text to ids and back: bytes, or sub-words by Hugging Face `tokenizers`."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from bmx.core.errors import InputError
from bmx.core.paths import how_to_fetch, local
from bmx.data.records import read_text
from bmx.data.text.template import Template, read_template

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
  """Ids around a document.

  Attributes:
    prefix: ids before it.
    suffix: ids after it.
    whole: whether they frame each part of a document that is cut.
  """

  prefix: tuple[int, ...]
  suffix: tuple[int, ...]
  whole: bool


def frame(tokenizer: 'Tokenizer') -> Frame:
  """Returns the tokens that the post-processor adds to a text; without an end, the end of text.

  >>> frame(Bytes())
  Frame(prefix=(), suffix=(), whole=False)
  """
  added = tokenizer.template
  ends = tuple(tokenizer.special[role] for role in ('eos',) if role in tokenizer.special)
  return Frame(added.prefix, added.suffix or ends, bool(added.prefix and added.suffix))


def special_facts(special: Mapping[str, int]) -> dict[str, Any]:
  """Returns the facts that a task that masks must agree with: special ids, and [MASK] (or -1).

  >>> special_facts({'cls': 2, 'pad': 0})
  {'special': (0, 2), 'mask': -1}
  """
  return {'special': tuple(sorted({*special.values()})), 'mask': special.get('mask', -1)}


BERT_SPECIAL = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')  # ids 0 to 4


@runtime_checkable
class Tokenizer(Protocol):
  """Text to ids and back."""

  @property
  def size(self) -> int:
    """Ids are below this."""
    ...

  @property
  def special(self) -> dict[str, int]:
    """Role -> id of the special tokens; roles are the keys of `ROLES`."""
    ...

  @property
  def ends(self) -> tuple[int, ...]:
    """Ids that end a text."""
    ...

  @property
  def text(self) -> str:
    """Content of `tokenizer.json`; '' if the tokenizer has no such file."""
    ...

  @property
  def template(self) -> Template:
    """Special tokens that are added to a text and to a pair of texts."""
    ...

  def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Returns the ids of each text, int32 [n], without special tokens."""
    ...

  def word_starts(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Returns for each id of `encode` whether a word begins there: bool [n]."""
    ...

  def decode(self, ids: Sequence[int] | np.ndarray) -> str: ...

  def settled(self, ids: Sequence[int]) -> str:
    """The beginning of `decode` that no further ids change."""
    ...


@dataclasses.dataclass(frozen=True)
class Bytes:
  """One token a byte: needs no file and is lossless."""

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

  @property
  def template(self) -> Template:
    return Template()

  def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [np.frombuffer(t.encode(), np.uint8).astype(np.int32) for t in texts]

  def word_starts(self, texts: Sequence[str]) -> list[np.ndarray]:
    space = [np.isin(ids, (9, 10, 13, 32)) for ids in self.encode(texts)]
    return [~s & np.concatenate([[True], s[:-1]]) if len(s) else s for s in space]

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    return bytes(int(i) for i in ids).decode(errors='replace')

  def settled(self, ids: Sequence[int]) -> str:
    return self.decode(ids).rstrip('\ufffd')  # its bytes may become another character


class Subwords:
  """A `tokenizer.json` of Hugging Face's `tokenizers`.

  Raises:
    InputError: the text is not a valid tokenizer.json, or `tokenizers` is not installed.
  """

  def __init__(self, text: str, source: str = 'tokenizer.json'):
    self._text = text
    try:
      self.inner = library().Tokenizer.from_str(text)
    except InputError:
      raise
    except Exception as error:  # the library raises plain Exceptions
      raise InputError(f'{source} is not a tokenizer.json: {error}') from None
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
    return tuple(sorted({*found, *frame(self).suffix}))

  @property
  def template(self) -> Template:
    return self._template

  @functools.cached_property
  def _template(self) -> Template:
    return read_template(self.inner)

  @functools.cached_property
  def _special(self) -> dict[str, int]:
    found = {role: [self.inner.token_to_id(s) for s in names] for role, names in ROLES.items()}
    found = {role: [i for i in ids if i is not None] for role, ids in found.items()}
    return {role: ids[0] for role, ids in found.items() if ids}

  def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [np.array(e.ids, np.int32) for e in self.encodings(texts)]

  def word_starts(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [_word_starts(e.word_ids) for e in self.encodings(texts)]

  def encodings(self, texts: Sequence[Any], special: bool = False, words: bool = False) -> Any:
    """Encodings as the library has them: ids, types, offsets and word numbers.

    Args:
      texts: texts or pairs of texts; lists of words if `words`.
      special: add special tokens.
      words: the texts are cut into words.

    Raises InputError if a text has no encoding.
    """
    try:
      return self.inner.encode_batch(list(texts), is_pretokenized=words, add_special_tokens=special)
    except Exception as error:  # the library raises plain ones: Unigram without an unknown token
      raise InputError(f'the tokenizer cannot encode a text: {error}') from None

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    return self.inner.decode([int(i) for i in ids], skip_special_tokens=True)

  def settled(self, ids: Sequence[int]) -> str:
    text = self.decode(ids)
    if self._invalid is not None:
      text = _common(text, self.decode([*ids, self._invalid]))
    return text.rstrip('\ufffd')  # its bytes may become another character

  @functools.cached_property
  def _invalid(self) -> int | None:
    """Returns a token of a byte that ends no character; None without one.

    Decoders with byte fallback spell a whole run of bytes anew if one of them is not valid.
    """
    found = (self.inner.token_to_id(f'<0x{byte:02X}>') for byte in range(0xFF, 0x7F, -1))
    return next((i for i in found if i is not None), None)


def _common(a: str, b: str) -> str:
  """Returns the longest text that both begin with."""
  if b.startswith(a):
    return a
  return a[: next(i for i, letter in enumerate(a) if b[i : i + 1] != letter)]


def _word_starts(words: Sequence[int | None]) -> np.ndarray:
  return np.array([w is None or i == 0 or w != words[i - 1] for i, w in enumerate(words)], bool)


def library() -> Any:
  """Imports `tokenizers`. Raises InputError if it is not installed."""
  try:
    import tokenizers
  except ImportError:
    raise InputError(
      'sub-words need the library tokenizers: pip install "bmx-jax[text]"; bytes need nothing'
    ) from None
  return tokenizers


def load(path: str) -> Subwords:
  """Loads a `tokenizer.json`, or that of a folder (a run's, or a Hugging Face model's).

  Args:
    path: of the file or the folder.
  """
  file = local(path)
  file = file / 'tokenizer.json' if file.is_dir() else file
  if not path:
    raise InputError('no folder of a tokenizer is named: set --config.init.path=DIR of the run or '
                     'the Hugging Face model to start from')  # fmt: skip
  if not local(path).exists():
    raise InputError(f'{path} does not exist: expected a tokenizer.json{how_to_fetch(path)}')
  if not file.is_file():
    raise InputError(f'no tokenizer.json in {path}')
  return Subwords(read_text(file), str(file))
