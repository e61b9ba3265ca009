"""experiments/aot/results.json: made from the recipes as they are, and memory counted by hand."""

import importlib.util
import json

import pytest

from tests.conftest import ROOT

FOLDER = ROOT / 'experiments/aot'
RESULTS = json.loads((FOLDER / 'results.json').read_text())


@pytest.fixture(scope='module')
def script():
  spec = importlib.util.spec_from_file_location('aot_compile', FOLDER / 'compile.py')
  assert spec is not None
  assert spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_no_line_is_older_than_its_recipe(script):
  """Lines of `UNDATED` alone say nothing of the recipe that they were made from."""
  old = [
    case
    for case, line in RESULTS.items()
    if case not in script.UNDATED and line.get('digest') != script.digest(*script.CASES[case])
  ]
  assert not old, f'python experiments/aot/compile.py; older than their recipes: {old}'


def test_lines_without_a_digest_and_cases_without_a_line_are_named(script):
  """The lists shrink as cases are compiled: `UNDATED` and `MISSING` of compile.py."""
  undated = {case for case, line in RESULTS.items() if 'digest' not in line}
  assert undated == set(script.UNDATED), 'UNDATED of experiments/aot/compile.py'
  assert set(script.CASES) - set(RESULTS) == set(script.MISSING), 'MISSING of compile.py'
  assert set(RESULTS) <= set(script.CASES)
