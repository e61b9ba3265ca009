"""Metadata of a Hugging Face folder: ids of special tokens, and class names."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from bmx.adapt.tensors import read_json
from bmx.core.errors import InputError
from bmx.core.paths import local
from bmx.data.text.tokenizer import Subwords

GENERATION = 'generation_config.json'
SPECIAL = ('bos', 'eos', 'pad')
ROLES = ('pad', 'unk', 'cls', 'sep', 'mask', 'bos', 'eos')

Ids = dict[str, int | list[int] | None]


def read_ids(folder: str | os.PathLike[str]) -> dict[str, tuple[int, ...]]:
  """Reads the ids of the tokens that begin, end and pad texts.

  Args:
    folder: of a model, with config.json and perhaps generation_config.json. Ends of both count;
      otherwise generation_config.json comes first.

  Returns:
    'bos', 'eos' and 'pad' -> ids, () if neither file names one.

  Raises:
    InputError: a file that cannot be read; ids that are not whole numbers from 0.
  """
  place = local(folder)
  files = [place / name for name in (GENERATION, 'config.json') if (place / name).is_file()]
  found: dict[str, tuple[int, ...]] = dict.fromkeys(SPECIAL, ())
  for file in files:
    config = read_json(file)
    for name in SPECIAL:
      ids = _ids(f'{file}: {name}_token_id', config.get(f'{name}_token_id'))
      if name == 'eos':
        found[name] = tuple(dict.fromkeys((*found[name], *ids)))
      elif not found[name]:
        found[name] = ids
  return found


def _ids(what: str, value: Any) -> tuple[int, ...]:
  ids = value if isinstance(value, list | tuple) else [] if value is None else [value]
  if any(type(i) is not int or i < 0 for i in ids):
    raise InputError(f'{what}={value!r}: expected whole numbers from 0')
  return tuple(ids)


def read_labels(config: Mapping[str, Any]) -> tuple[str, ...]:
  """Returns the names of classes or tags by number, `id2label` of a config.json; () without it.

  Raises InputError if the numbers are not 0, 1, 2, ...
  """
  given = config.get('id2label') or {}
  if not isinstance(given, dict) or sorted(map(str, given)) != sorted(map(str, range(len(given)))):
    raise InputError(f'id2label={given!r}: expected a name for each of 0, 1, 2, ...')
  return tuple(str(given.get(str(i), given.get(i))) for i in range(len(given)))


def plain_ids(special: Mapping[str, int | Sequence[int]]) -> Ids:
  """Converts 'bos', 'eos' and 'pad' to JSON values. Raises InputError for other names."""
  other = special.keys() - set(SPECIAL)
  if other:
    raise InputError(f'special={dict(special)}: expected the names {", ".join(SPECIAL)}')
  found = {name: _ids(f'special.{name}', special.get(name)) for name in SPECIAL}
  return {k: v[0] if len(v) == 1 else list(v) or None for k, v in found.items()}


def special_ids(tokenizer: str) -> Ids:
  """Returns the special ids of a tokenizer.json; all None without one."""
  if not tokenizer:
    return plain_ids({})
  inner = Subwords(tokenizer)
  roles = inner.special
  bos = roles.get('bos', roles.get('cls'))
  found = {'bos': bos, 'eos': inner.ends, 'pad': roles.get('pad')}
  return plain_ids({k: v for k, v in found.items() if v is not None})


def token_keys(ids: Ids, pad: bool) -> dict[str, Any]:
  """Returns the keys of config.json for the present `ids`; `pad`: that of padding, too."""
  return {f'{k}_token_id': v for k, v in ids.items() if v is not None and (pad or k != 'pad')}


def tokenizer_config(tokenizer: str, types: bool = False) -> dict[str, Any]:
  """Returns the tokenizer_config.json with which transformers takes a tokenizer.json as it is.

  Without it, transformers builds a tokenizer of the model's own kind from the vocabulary.

  Args:
    tokenizer: the text of a tokenizer.json.
    types: whether the model reads token types; transformers 5 omits them by default, 4 adds them.
  """
  inner = Subwords(tokenizer)
  tokens = {role: inner.inner.id_to_token(i) for role, i in inner.special.items() if role in ROLES}
  if 'eos' not in tokens and inner.ends:
    tokens['eos'] = inner.inner.id_to_token(inner.ends[0])
  return {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'clean_up_tokenization_spaces': False,
    'model_input_names': ['input_ids', *['token_type_ids'] * types, 'attention_mask'],
    **{f'{role}_token': token for role, token in sorted(tokens.items())},
  }
