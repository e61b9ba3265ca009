"""The tokenizer of a folder of weights, against that of the data."""

import json
from typing import Any

from bmx.core.errors import InputError
from bmx.runtime.storage import place
from bmx.train import datafile

MEANING = ('model', 'added_tokens', 'normalizer', 'pre_tokenizer')  # what the ids stand for


def check_tokenizer(folder: str, text: str | None, word: str) -> None:
  """Compares the tokenizer beside the weights of a folder with that of the data.

  Templates, padding and truncation are not compared: they change no id.

  Args:
    folder: a run of bmx, or a Hugging Face directory.
    text: the tokenizer.json of the data; '' of bytes, None if it is not known.
    word: of `init` that names the folder.

  Raises:
    InputError: the tokenizers give their ids other meanings.
  """
  given = _tokenizer_at(folder)
  if _are_alike(given, text):
    return
  word_of_data = f"{{'call': 'bmx.data.text.tokenizer:load', 'path': {folder!r}}}"
  raise InputError(
    f'init.{word}={folder!r}: its tokenizer is {_brief(given)}, that of the data {_brief(text)}: '
    'expected one tokenizer, as an id means another text otherwise; set '
    f'--config.data.tokenizer="{word_of_data}", or name a folder with the tokenizer of the data'
  )


def difference(folder: str, other: str) -> str:
  """Describes the tokenizers of two folders that differ; '' if they do not, or one is not known.

  Args:
    folder: a run of bmx, or a Hugging Face directory.
    other: likewise.
  """
  a, b = _tokenizer_at(folder), _tokenizer_at(other)
  return '' if _are_alike(a, b) else f'{_brief(a)} there, {_brief(b)} here'


def _are_alike(a: str | None, b: str | None) -> bool:
  return a is None or b is None or _meaning(a) == _meaning(b)


def _tokenizer_at(folder: str) -> str | None:
  """Returns the tokenizer.json of a folder, '' of bytes; None if it is not known."""
  stored = datafile.read(place(folder))
  if stored is not None:
    return stored.state.get('tokenizer')
  path = place(folder) / datafile.TOKENIZER
  return path.read_text(encoding='utf-8') if path.is_file() else None


def _meaning(text: str) -> Any:
  if not text:
    return ''
  try:
    whole = json.loads(text)
    return {key: whole.get(key) for key in MEANING}
  except (ValueError, AttributeError):
    return text


def _brief(text: str | None) -> str:
  """Describes a tokenizer: bytes, or the kind and the size of its vocabulary."""
  if not text:
    return 'bytes'
  known = _meaning(text)
  model = known['model'] or {} if isinstance(known, dict) else {}
  return f'{model.get("type", "another")} of {len(model.get("vocab", ()))} tokens'
