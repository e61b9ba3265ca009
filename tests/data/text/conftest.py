"""Tokenizers that several tests of text share."""

import pytest

from bmx.data.text.tokenizer_train import trained
from tests.data.letters import sentences


@pytest.fixture(scope='module')
def coder(tmp_path_factory):
  """A WordPiece tokenizer that knows few words and all letters."""
  folder = tmp_path_factory.mktemp('coder')
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XDG_CACHE_HOME', str(folder))
    path = folder / 'text.txt'
    letters = 'abcdefghijklmnopqrstuvwxyz0123456789.,?'
    path.write_text('\n'.join([*sentences(100), ' '.join(letters), letters]))
    return trained('wordpiece', 300, (str(path),))
