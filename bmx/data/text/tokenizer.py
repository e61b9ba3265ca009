"""Tokenizers, text to ids and back: bytes, or sub-words by Hugging Face `tokenizers`."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bmx.core.errors import InputError
from bmx.core.paths import how_to_fetch
from bmx.data.records import read_text
from bmx.data.text import chat_template as templates
from bmx.data.text.protocol import Tokenizer
from bmx.data.text.special import ENDS, check_names, read_ids, read_named, roles_of
from bmx.data.text.template import Frame, Template, read_template
from bmx.runtime.storage import place


def frame(tokenizer: Tokenizer) -> Frame:
  """Returns the tokens that the post-processor adds to a text; without an end, the end of text.

  >>> frame(Bytes())
  Frame(prefix=(), suffix=(), whole=False)
  """
  added, special = tokenizer.template, tokenizer.special
  ends = (special['eos'],) if 'eos' in special else ()
  # A decoder that learns an end of text in the middle of one would stop there.
  encoder = 'mask' in special or added.suffix != ends
  return Frame(added.prefix, added.suffix or ends, bool(added.prefix and added.suffix and encoder))


@dataclasses.dataclass(frozen=True)
class Bytes:
  """One token a byte: needs no file and is lossless.

  Attributes:
    chat_template: Jinja template of conversations; '' without one.
  """

  chat_template: str = ''

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
  def names(self) -> dict[str, str]:
    return {}

  @property
  def hidden(self) -> dict[str, int]:
    return {}

  @property
  def template(self) -> Template:
    return Template()

  def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [np.frombuffer(t.encode(), np.uint8).astype(np.int32) for t in texts]

  def word_starts(self, texts: Sequence[str]) -> list[np.ndarray]:
    space = [np.isin(ids, (9, 10, 13, 32)) for ids in self.encode(texts)]
    return [~s & np.concatenate([[True], s[:-1]]) if len(s) else s for s in space]

  def char_starts(self, texts: Sequence[str]) -> list[np.ndarray]:
    sizes = [np.array([len(c.encode()) for c in t], np.int64) for t in texts]
    return [np.repeat(np.arange(len(n)), n) for n in sizes]

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    return bytes(int(i) for i in ids).decode(errors='replace')

  def settled(self, ids: Sequence[int]) -> str:
    return self.decode(ids).rstrip('\ufffd')  # its bytes may become another character


class Subwords:
  """A `tokenizer.json` of Hugging Face's `tokenizers`.

  Args:
    text: of the file.
    source: its path, for messages.
    names: role -> special token, as files beside it name them; see `special.read_named`.
    chat_template: Jinja template of conversations; '' without one.

  Raises:
    InputError: the text is not a valid tokenizer.json, it lacks a token of `names`, or `tokenizers`
      is not installed.
  """

  def __init__(
    self,
    text: str,
    source: str = 'tokenizer.json',
    names: Mapping[str, str] | None = None,
    chat_template: str = '',
  ):
    self._text, self._names, self.chat_template = text, dict(names or {}), chat_template
    try:
      self.inner = library().Tokenizer.from_str(text)
    except InputError:
      raise
    except Exception as error:  # the library raises plain Exceptions
      raise InputError(f'{source} is not a tokenizer.json: {error}') from None
    self.inner.no_truncation()
    self.inner.no_padding()
    check_names(source, self.names, self.inner.token_to_id)

  def __eq__(self, other: object) -> bool:
    return isinstance(other, Subwords) and other.text == self.text

  def __hash__(self) -> int:
    return hash(self.text)

  @property
  def text(self) -> str:
    return self._text

  @property
  def names(self) -> dict[str, str]:
    return self._names

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
    named = [self.names[role] for role in ('eos',) if role in self.names]
    found = {self.inner.token_to_id(token) for token in named or ENDS} - {None}
    return tuple(sorted({*found, *frame(self).suffix}))

  @property
  def template(self) -> Template:
    return self._template

  @functools.cached_property
  def _template(self) -> Template:
    return read_template(self.inner)

  @functools.cached_property
  def _special(self) -> dict[str, int]:
    return roles_of(self.inner.token_to_id, self.names)

  @property
  def hidden(self) -> dict[str, int]:
    added = self.inner.get_added_tokens_decoder()
    return {token.content: i for i, token in added.items() if token.special}

  def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [np.array(e.ids, np.int32) for e in self.encodings(texts)]

  def word_starts(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [_word_starts(e.word_ids) for e in self.encodings(texts)]

  def char_starts(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [np.array([a for a, _ in e.offsets], np.int64) for e in self.encodings(texts)]

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
  """Loads a `tokenizer.json`, or the one in a folder (a run's, or a Hugging Face model's).

  Files beside it name its special tokens: tokenizer_config.json, special_tokens_map.json and, for
  the end of a text, generation_config.json and config.json. chat_template.jinja or
  tokenizer_config.json has its template of conversations. The post-processor adds
  tokens to a text, as in transformers 5, which ignores `add_bos_token` beside a tokenizer.json.

  Args:
    path: of the file or the folder.

  Raises:
    InputError: the file does not exist, or a file is malformed.
  """
  file = place(path)
  file = file / 'tokenizer.json' if file.is_dir() else file
  if not path:
    raise InputError('no folder of a tokenizer is named: set --config.init.path=DIR of the run or '
                     'the Hugging Face model to start from')  # fmt: skip
  if not place(path).exists():
    raise InputError(f'{path} does not exist: expected a tokenizer.json{how_to_fetch(path)}')
  if not file.is_file():
    raise InputError(f'no tokenizer.json in {path}')
  named = read_named(file.parent)
  template = templates.read(file.parent)
  made = Subwords(read_text(file), str(file), named.tokens, template)
  ends = [made.inner.id_to_token(i) for i in read_ids(file.parent)['eos'][:1]]
  if ends and ends[0] and 'eos' not in named.tokens:
    made = Subwords(made.text, str(file), {**named.tokens, 'eos': ends[0]}, template)
  added = {*made.template.prefix, *made.template.suffix}
  named.check_flags(file, [role for role, i in made.special.items() if i in added])
  return made
