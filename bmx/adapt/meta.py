"""Metadata of a Hugging Face folder: ids of special tokens, and class names."""

from collections.abc import Mapping, Sequence
from typing import Any

from bmx.core.errors import InputError
from bmx.data.text.special import IDS, checked_ids
from bmx.data.text.tokenizer import Subwords

Ids = dict[str, int | list[int] | None]


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
  other = special.keys() - set(IDS)
  if other:
    raise InputError(f'special={dict(special)}: expected the names {", ".join(IDS)}')
  found = {name: checked_ids(f'special.{name}', special.get(name)) for name in IDS}
  return {k: v[0] if len(v) == 1 else list(v) or None for k, v in found.items()}


def special_ids(tokenizer: Subwords | None) -> Ids:
  """Returns the special ids of a tokenizer; all None without one."""
  if tokenizer is None:
    return plain_ids({})
  roles = tokenizer.special
  bos = roles.get('bos', roles.get('cls'))
  found = {'bos': bos, 'eos': tokenizer.ends, 'pad': roles.get('pad')}
  return plain_ids({k: v for k, v in found.items() if v is not None})


def token_keys(ids: Ids, pad: bool) -> dict[str, Any]:
  """Returns the keys of config.json for the present `ids`; `pad`: that of padding, too."""
  return {f'{k}_token_id': v for k, v in ids.items() if v is not None and (pad or k != 'pad')}


def tokenizer_config(tokenizer: Subwords, types: bool = False) -> dict[str, Any]:
  """Returns the tokenizer_config.json with which transformers takes a tokenizer.json as it is.

  Without it, transformers builds a tokenizer of the model's own kind from the vocabulary.

  Args:
    tokenizer: the one that is written as tokenizer.json.
    types: whether the model reads token types; transformers 5 omits them by default, 4 adds them.
  """
  token = tokenizer.inner.id_to_token
  tokens = {role: token(i) for role, i in tokenizer.special.items()}
  if 'eos' not in tokens and tokenizer.ends:
    tokens['eos'] = token(tokenizer.ends[0])
  return {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'clean_up_tokenization_spaces': False,
    'model_input_names': ['input_ids', *['token_type_ids'] * types, 'attention_mask'],
    **{f'{role}_token': token for role, token in sorted(tokens.items())},
  }
