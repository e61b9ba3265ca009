"""The model card of a package: README.md, as model hubs show it."""

import datetime
from collections.abc import Mapping
from typing import Any

from bmx.core.errors import InputError
from bmx.runtime.markdown import table, versions
from bmx.runtime.writer import brief

LIFE_DAYS = 180  # that jax reads an exported program for, at least
SHOWN = 24  # names of classes


def check_license(text: str) -> str:
  """Returns the license of a card. Raises InputError if it is not one line."""
  if not text.isprintable() or set(text) & set('"#:{}[]'):
    raise InputError(f'export.license={text!r}: expected words on one line, such as apache-2.0')
  return text


def expires(created: str) -> str:
  """Returns the date until which jax reads a program that was exported at `created`, both ISO."""
  return str(datetime.date.fromisoformat(created) + datetime.timedelta(days=LIFE_DAYS))


def date(seconds: float) -> str:
  """Returns the day of a time in seconds since 1970, as ISO writes it."""
  return datetime.date.fromtimestamp(seconds).isoformat()


def text(facts: Mapping[str, Any], about: Mapping[str, Any]) -> str:
  """Returns the text of a card.

  Args:
    facts: content of package.json.
    about: 'description', 'license', 'parameters', 'data' (its source, size, digest), 'class_names',
      'versions'.
  """
  head = [f'license: {about["license"]}'] if about['license'] else []
  parts = [
    '\n'.join(['---', *head, 'library_name: jax', 'tags: [bmx]', '---', '', f'# {facts["name"]}']),
    about['description'],
    _use(facts),
    _results(facts['results']),
    _facts(facts, about),
    _life(facts),
  ]
  return '\n\n'.join(part for part in parts if part) + '\n'


def _use(facts: Mapping[str, Any]) -> str:
  """How to load the model; its inputs and outputs."""
  limits = ', '.join(f'{k} ≤ {v}' for k, v in facts['most'].items() if v < 2**31 - 1)
  call = ', '.join(f'{name}=...' for name in facts['inputs'])
  lines = [
    '## Use', '', '`pip install jax flatbuffers`, then in this folder:', '', '```python',
    'import loader', "model = loader.Model('.')  # checks the SHA-256 of every file",
    f'outputs = model({call})', '```', '',
    f'The program runs on {", ".join(facts["platforms"])}. Sizes written as letters may be any '
    f'number from 1{", " + limits if limits else ""}.', '',
    *table(['array', 'shape', 'dtype'], [
      [f'{kind} `{name}`', str(x['shape']).replace("'", ''), x['dtype']]
      for kind, arrays in (('input', facts['inputs']), ('output', facts['outputs']))
      for name, x in arrays.items()
    ]), '',
    'With bmx the folder is read as a run: `bmx predict .`, `bmx serve .`, or `--init.path=.`.',
  ]  # fmt: skip
  return '\n'.join(lines)


def _results(results: Mapping[str, Any]) -> str:
  metrics = results.get('metrics', {})
  shown = {k: v for k, v in metrics.items() if k.startswith('eval/')} or metrics
  if not shown:
    return ''
  rows = [[f'`{k}`', brief(v)] for k, v in shown.items()]
  return '\n'.join([
    '## Results', '', f'After {results["steps"]:,} steps on {results["device"]}, '
    f'{results["date"]}.', '', *table(['metric', 'value'], rows),
  ])  # fmt: skip


def _facts(facts: Mapping[str, Any], about: Mapping[str, Any]) -> str:
  data, names = about['data'], about['class_names']
  shown = ', '.join(names[:SHOWN]) + (f', ... ({len(names)})' if len(names) > SHOWN else '')
  rows = [
    ['parameters', f'{about["parameters"]:,}'],
    ['step', f'{facts["step"]:,}'],
    *([['classes', shown]] if names else []),
    ['training data', f'{data["source"]}, {data["size"]:,} examples'],
    ['SHA-256 of the data', data['digest'] or 'not known'],
    ['license', about['license'] or 'not stated'],
    ['trained with', versions(about['versions'])],
    ['exported', f'{facts["created"]} with {versions(facts["versions"])}'],
    ['largest error', f'{facts["error"]:.2g} of the largest output, against those of the run, in a '
                      'process without bmx'],
  ]  # fmt: skip
  return '\n'.join(['## Facts', '', *table(['', ''], rows)])


def _life(facts: Mapping[str, Any]) -> str:
  return (
    '## Life\n\n`program.bin` is read by releases of jax until '
    f'{expires(facts["created"])} at least: jax promises six months. The weights, config.json and '
    'data.json are kept longer: `bmx export . --output=NEW` writes a program anew.'
  )
