"""Special tokens: those that files beside a tokenizer.json name, and published spellings."""

import dataclasses
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bmx.core.errors import InputError
from bmx.runtime.files import read_json
from bmx.runtime.storage import Place, place

log = logging.getLogger('bmx')
MAP, CONFIG = 'special_tokens_map.json', 'tokenizer_config.json'
GENERATION = 'generation_config.json'
IDS = ('bos', 'eos', 'pad')
ROLES = ('pad', 'unk', 'cls', 'sep', 'mask', 'bos', 'eos')

# Role of a special token -> the spellings that published tokenizers use. They count where no
# file beside tokenizer.json names the token; without [MASK], <s> and </s> are BOS and EOS.
SPELLINGS = {
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
class Named:
  """Special tokens that tokenizer_config.json and special_tokens_map.json name.

  Attributes:
    tokens: role -> token.
    flags: 'bos' and 'eos' -> whether that token is to be added to a text, where a file says so.
  """

  tokens: dict[str, str]
  flags: dict[str, bool]

  def check_flags(self, file: Place, added: Sequence[str]) -> None:
    """Warns of flags that a tokenizer.json contradicts: transformers 5 does not read them, either.

    Args:
      file: the tokenizer.json.
      added: roles of the tokens that its post-processor adds to a text.
    """
    for role, flag in self.flags.items():
      if flag != (role in added):
        log.warning(
          '%s: add_%s_token=%s is not read: the post_processor of tokenizer.json decides, and adds '
          '%s; change it if texts should have another begin or end',
          file.parent / CONFIG, role, flag, f'{role}_token' if role in added else 'none',
        )  # fmt: skip


def read_named(folder: Place) -> Named:
  """Reads the special tokens that a folder names. Raises InputError for malformed files."""
  tokens: dict[str, str] = {}
  flags: dict[str, bool] = {}
  for file in (folder / MAP, folder / CONFIG):
    config = read_object(file) if file.is_file() else {}
    for role in ROLES:
      token = config.get(f'{role}_token')
      token = token.get('content') if isinstance(token, dict) else token
      if not isinstance(token, str | None):
        raise InputError(f'{file}: {role}_token={token!r}: expected a token, as text')
      tokens |= {role: token} if token else {}
    for role in ('bos', 'eos'):
      flag = config.get(f'add_{role}_token')
      if not isinstance(flag, bool | None):
        raise InputError(f'{file}: add_{role}_token={flag!r}: expected true or false')
      flags |= {role: flag} if flag is not None else {}
  return Named(tokens, flags)


def check_names(source: str, names: Mapping[str, str], id_of: Callable[[str], int | None]) -> None:
  """Raises InputError if a tokenizer lacks a token that `names` gives to a role.

  A model may name tokens of padding and of unknown words that its tokenizer.json lacks.
  """
  for role, token in names.items():
    if role not in ('pad', 'unk') and id_of(token) is None:
      raise InputError(
        f'{source}: expected {role}_token={token!r} of tokenizer_config.json among its tokens; '
        'add it, or name another one'
      )


def roles_of(id_of: Callable[[str], int | None], names: Mapping[str, str]) -> dict[str, int]:
  """Returns role -> id of the special tokens that there are.

  Args:
    id_of: token -> id; None for other tokens.
    names: role -> token, which come before the `SPELLINGS`.
  """
  of = lambda tokens: [i for t in tokens if (i := id_of(t)) is not None]
  roles = {role: ids[0] for role, tokens in SPELLINGS.items() if (ids := of(tokens))}
  roles |= {role: ids[0] for role, token in names.items() if (ids := of([token]))}
  if 'mask' in roles:
    return roles
  for role, encoders, token in (('bos', 'cls', '<s>'), ('eos', 'sep', '</s>')):
    if encoders not in names and roles.get(encoders, -1) in of([token]):
      roles.setdefault(role, roles.pop(encoders))
  return roles


def special_facts(special: Mapping[str, int]) -> dict[str, Any]:
  """Returns the facts that a task that masks must agree with: special ids, and [MASK] (or -1).

  >>> special_facts({'cls': 2, 'pad': 0})
  {'special': (0, 2), 'mask': -1}
  """
  return {'special': tuple(sorted({*special.values()})), 'mask': special.get('mask', -1)}


def read_ids(folder: str | os.PathLike[str]) -> dict[str, tuple[int, ...]]:
  """Ids of the tokens that begin, end and pad texts, as a folder names them.

  Args:
    folder: of a model, with config.json and perhaps generation_config.json. Ends of both count;
      otherwise generation_config.json comes first.

  Returns:
    'bos', 'eos' and 'pad' -> ids, () where neither file names one.

  Raises:
    InputError: a file that cannot be read; ids that are not whole numbers from 0.
  """
  where = place(folder)
  files = [where / name for name in (GENERATION, 'config.json') if (where / name).is_file()]
  found: dict[str, tuple[int, ...]] = dict.fromkeys(IDS, ())
  for file in files:
    config = read_object(file)
    for name in IDS:
      ids = checked_ids(f'{file}: {name}_token_id', config.get(f'{name}_token_id'))
      if name == 'eos':
        found[name] = tuple(dict.fromkeys((*found[name], *ids)))
      elif not found[name]:
        found[name] = ids
  return found


def checked_ids(what: str, value: Any) -> tuple[int, ...]:
  """Returns one id, several or None as a tuple. Raises InputError if they are not ids."""
  ids = value if isinstance(value, list | tuple) else [] if value is None else [value]
  if any(type(i) is not int or i < 0 for i in ids):
    raise InputError(f'{what}={value!r}: expected whole numbers from 0')
  return tuple(ids)


def read_object(file: Place) -> dict[str, Any]:
  """Reads a JSON object. Raises InputError if the file is malformed."""
  try:
    value = read_json(file)
  except (OSError, ValueError) as error:
    raise InputError(f'{file} cannot be read: {error}') from None
  if not isinstance(value, dict):
    raise InputError(f'{file} holds no object')
  return value
