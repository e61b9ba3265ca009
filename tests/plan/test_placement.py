"""Where every array lies, per recipe and topology: files in tests/golden, to read in a diff."""

import pytest

from tests.golden.write import CASES, FOLDER, text

pytest.importorskip('libtpu', reason='the extra `aot` is not installed')
pytest.importorskip('jax_cuda12_plugin', reason='the extra `aot` is not installed')


@pytest.mark.parametrize('name', CASES)
def test_placement_is_the_golden_one(name):
  expected = (FOLDER / f'{name}.txt').read_text()
  assert text(name) == expected, 'if it is meant: python -m tests.golden.write'
