"""Executes a notebook without jupyter, and stores what its cells show.

    python scripts/notebook.py docs/first_run.ipynb

Cells run in one namespace; the value of a last expression is what a cell shows. `IPython.display`
is replaced by a stand-in with `HTML`.
"""

import ast
import dataclasses
import json
import os
import pathlib
import pprint
import sys
import tempfile
import types
from typing import Any


@dataclasses.dataclass
class HTML:
  """Stand-in for IPython.display.HTML.

  Attributes:
    data: the element.
  """

  data: str


def execute(notebook: dict[str, Any]) -> list[Any]:
  """Returns the value that each cell of code shows; None where it shows nothing."""
  display = types.ModuleType('IPython.display')
  display.__dict__['HTML'] = HTML
  known = sys.modules.get('IPython.display')
  sys.modules['IPython.display'] = display
  sys.modules.setdefault('IPython', types.ModuleType('IPython'))
  scope: dict[str, Any] = {}
  try:
    return [_run(''.join(c['source']), scope) for c in codes(notebook)]
  finally:
    del sys.modules['IPython.display']
    if known:
      sys.modules['IPython.display'] = known


def codes(notebook: dict[str, Any]) -> list[dict[str, Any]]:
  """Returns the cells of code."""
  return [cell for cell in notebook['cells'] if cell['cell_type'] == 'code']


def _run(source: str, scope: dict[str, Any]) -> Any:
  *before, last = ast.parse(source).body
  if not isinstance(last, ast.Expr):
    before, last = [*before, last], None
  exec(compile(ast.Module(before, []), 'notebook', 'exec'), scope)
  return (
    None if last is None else eval(compile(ast.Expression(last.value), 'notebook', 'eval'), scope)
  )


def shown(value: Any) -> dict[str, str]:
  """Returns a value as a notebook stores it: kind -> text."""
  if isinstance(value, HTML):
    return {'text/html': value.data}
  return {'text/plain': pprint.pformat(value, width=90, sort_dicts=False)}


def markdown(notebook: dict[str, Any]) -> str:
  """Returns a notebook, with its stored outputs, as a page of the site."""
  parts = []
  for cell in notebook['cells']:
    source = ''.join(cell['source'])
    if cell['cell_type'] == 'markdown':
      parts.append(source)
      continue
    parts.append(f'```python\n{source}\n```')
    for output in cell['outputs']:
      for kind, text in output['data'].items():
        text = ''.join(text)
        parts.append(text if kind == 'text/html' else f'```text\n{text}\n```')
  return '\n\n'.join(parts) + '\n'


def main(path: pathlib.Path) -> None:
  """Executes a notebook in an empty folder, and writes its outputs into it."""
  notebook = json.loads(path.read_text())
  with tempfile.TemporaryDirectory() as folder:
    here = os.getcwd()
    os.chdir(folder)
    values = execute(notebook)
    os.chdir(here)
  for n, (cell, value) in enumerate(zip(codes(notebook), values, strict=True), 1):
    result = {'output_type': 'execute_result', 'execution_count': n, 'metadata': {}}
    cell |= {'execution_count': n, 'outputs': []}
    if value is not None:
      cell['outputs'] = [result | {'data': shown(value)}]
  path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + '\n')


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]))
