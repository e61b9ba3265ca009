"""What can be set: every word of a config with its value, default, type and meaning.

The meanings of shared words are those of `words.WORDS`; those of a part's words are the first
sentences of the Args or Attributes entries in its callee's docstring.
"""

import inspect
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from bmx.config.parts import parameters, resolve
from bmx.config.words import DEFAULT_CALLS, NAMED_PARTS, PARTS, WORDS

# What `experiment.build` gives to the parts of a word: nobody sets it.
INJECTED = {
  'task': {'metadata'},
  'data': {'seed', 'train', 'read', 'fitted'},
  'eval': {'seed', 'train', 'read', 'fitted'},
  'optimizer': {'learning_rate'},
  'schedule': {'steps'},
  'grad': {'inner', 'batch_size', 'metadata'},
  'privacy': set(),
  'hooks': {'seed', 'batch_size'},
  'writers': set(),
}
ENTRY = {
  ('eval', 'batch_size'): 'Examples of one dispatch; default: `batch_size`.',
  ('eval', 'metrics'): "Functions of predictions, 'package.module:function'.",
  ('hooks', 'every'): 'Steps between calls; 0: at the end only.',
}
SECTION = re.compile(r'^(?:Args|Attributes):\n((?:[ ].*\n|\n)*)', re.MULTILINE)
SENTENCE_END = re.compile(r'(?<!\beq)(?<!\bal)(?<!e\.g)[.]\s+(?=[A-Z`\'"0-9(])')


class Line(NamedTuple):
  """A word that can be set.

  Attributes:
    word: its dotted name.
    value: now; None for a parameter whose callee has no default for it.
    default: text of the default; '' without one.
    kind: text of its type.
    meaning: one sentence; '' if nobody has written one.
  """

  word: str
  value: Any
  default: str
  kind: str
  meaning: str


def lines(config: Any) -> Iterator[Line]:
  """Yields every word of a config that can be set, the shared words in the order of `WORDS`."""
  values = config.to_dict()
  yield from _facts(config)
  for name, word in WORDS.items():
    if name in PARTS:
      yield from _part(name, values[name], name)
    elif name in NAMED_PARTS:
      for entry, part in values[name].items():
        yield from _entry(name, entry, part, values['data'])
    elif name == 'compute':
      yield Line(name, values[name], '{}', 'words of rules', word.meaning)
    else:
      group, _, leaf = name.rpartition('.')
      value = values[group][leaf] if group else values[name]
      yield Line(name, value, repr(word.default), type(word.default).__name__, word.meaning)
  for name, value in values['init'].items():
    if f'init.{name}' not in WORDS:
      yield Line(f'init.{name}', value, "''", 'str', f'Folder of the collection {name!r}.')


def _facts(config: Any) -> Iterator[Line]:
  """Words that a recipe adds: each sets the words that are tied to it."""
  own = {name for name in config if name not in {word.partition('.')[0] for word in WORDS}}
  for name in sorted(own):
    tied = sorted(set(_tied(config, config.get_ref(name), '')) - {name})
    meaning = f'Sets {", ".join(tied)}.' if tied else 'Of this recipe.'
    yield Line(name, config[name], '', type(config[name]).__name__, meaning)


def _tied(config: Any, reference: Any, where: str) -> Iterator[str]:
  """Words whose value is a reference."""
  for key, value in config.items(preserve_field_references=True):
    if value is reference:
      yield f'{where}{key}'
    elif isinstance(config[key], type(config)):
      yield from _tied(config[key], reference, f'{where}{key}.')


def _entry(word: str, name: str, part: Mapping[str, Any], data: Any) -> Iterator[Line]:
  """Words of an `eval` entry or a hook; of an entry that inherits `data`, those that differ."""
  where, own = f'{word}.{name}', dict(part)
  for (group, key), meaning in ENTRY.items():
    if group == word:
      value = own.pop(key, 0 if key != 'metrics' else ())
      yield Line(f'{where}.{key}', value, '', type(value).__name__, meaning)
  inherits = word == 'eval' and 'call' not in own
  full = {'call': data.get('call', '')} | own if inherits else own
  found = _part(where, full, word)
  yield from (line for line in found if not inherits or line.word.split('.')[2] in own)


def _part(where: str, part: Mapping[str, Any], word: str) -> Iterator[Line]:
  """Words of a part and of the parts inside it."""
  if not part:
    yield Line(where, {}, '{}', 'part', WORDS[where].meaning if where in WORDS else '')
    return
  if where in DEFAULT_CALLS:
    part = {'call': DEFAULT_CALLS[where]} | dict(part)
  if 'call' not in part:
    yield Line(where, part, '', 'words', '')
    return
  fn = resolve(part['call'])
  yield Line(f'{where}.call', part['call'], '', 'str', _first_sentence(inspect.getdoc(fn) or ''))
  known, meanings = parameters(fn, part['call']), documented(fn)
  inner = {}
  for key, parameter in known.items():
    if key in INJECTED[word] and key not in part:
      continue
    if parameter.kind is parameter.VAR_KEYWORD:
      continue
    value = part.get(key, None if parameter.default is parameter.empty else parameter.default)
    if _is_part(value):
      inner[key] = value
      continue
    default = '' if parameter.default is parameter.empty else _text(parameter.default)
    kind = _kind(parameter.annotation)
    yield Line(f'{where}.{key}', value, default, kind, meanings.get(key, ''))
  for key, value in part.items():
    if key != 'call' and key not in known:
      yield Line(f'{where}.{key}', value, '', type(value).__name__, 'Passed on by the callee.')
  for key, value in inner.items():
    yield from _part(f'{where}.{key}', value, word)


def _is_part(value: Any) -> bool:
  return isinstance(value, Mapping) and 'call' in value


def _text(default: Any) -> str:
  return (
    '' if callable(default) else str(default) if repr(default).startswith('<') else repr(default)
  )


def _kind(annotation: Any) -> str:
  """Type names for people: float, int | str, tuple; 'part' for objects."""
  if annotation is inspect.Parameter.empty:
    return ''
  if isinstance(annotation, str):
    return annotation
  origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
  if origin in (typing.Union, types.UnionType):
    return ' | '.join(dict.fromkeys(_kind(a) for a in inner if a is not type(None)))
  if origin is typing.Literal:
    return ' | '.join(map(repr, inner))
  plain = origin or annotation
  if plain in (bool, int, float, str, tuple, list):
    return 'tuple' if plain is list else plain.__name__
  if inspect.isclass(plain) and issubclass(plain, Mapping):
    return 'words'
  return 'tuple' if origin is not None and 'Sequence' in str(plain) else 'part'


def documented(fn: Callable[..., Any]) -> dict[str, str]:
  """The first sentences of a docstring's Args and Attributes, by name.

  `a, b: text` describes both. Entries of a base class count where the callee has none.

  >>> def f(a, b): '''F.
  ...
  ... Args:
  ...   a: one. More.
  ...   b: two, on
  ...     two lines.
  ... '''
  >>> documented(f)
  {'a': 'One.', 'b': 'Two, on two lines.'}
  """
  texts = [inspect.getdoc(c) or '' for c in reversed(fn.__mro__)] if inspect.isclass(fn) else []
  texts.append(inspect.getdoc(fn) or '')
  found = {}
  for text in texts:
    for section in SECTION.findall(text + '\n'):
      found |= _entries(textwrap.dedent(section))
  return found


def _entries(section: str) -> dict[str, str]:
  """Names -> first sentence of each entry of a section."""
  found: dict[str, str] = {}
  joined = re.sub(r'\n +', ' ', section)
  for line in joined.splitlines():
    names, colon, text = line.partition(': ')
    if colon and re.fullmatch(r'\w+(, \w+)*', names):
      found |= dict.fromkeys(names.split(', '), _first_sentence(text))
  return found


def _first_sentence(text: str) -> str:
  """Returns the first sentence of a text, on one line.

  >>> _first_sentence('a share of units. Of training only.')
  'A share of units.'
  """
  flat = ' '.join(text.split('\n\n')[0].split())
  first = SENTENCE_END.split(flat)[0].removesuffix('.') + '.'
  return first[:1].upper() + first[1:] if first[:1].isalpha() else first
