"""The groups of tests that pyproject.toml names and tests/conftest.py fills."""

import ast

import pytest

from tests.conftest import COMPILE, ROOT, SLOW


@pytest.mark.parametrize('name', [*SLOW, *COMPILE])
def test_a_group_names_what_exists(name):
  file, _, prefix = name.partition('::')
  path = ROOT / 'tests' / file
  assert path.exists()
  if prefix:
    tree = ast.parse(path.read_text())
    tests = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert [test for test in tests if test.startswith(prefix)]
