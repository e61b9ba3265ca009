"""The table of parameters at the start of a run."""

import jax

from bmx import config as recipes
from bmx import experiment
from bmx.core import tree
from bmx.train.parameters import parameter_table
from bmx.train.state import state_spec


def rows(*overrides):
  """-> (first words of the rows, the table) for a GPT of 11 parameters on one device."""
  words = ['mesh.data=1', *overrides]
  config, _ = recipes.load('gpt_char:tiny', words)
  x = experiment.build(config, 'gpt', jax.devices()[:1], read=False)
  text = parameter_table(x, tree.named(state_spec(x).abstract.params))
  return [line.split()[0] for line in text.splitlines()], text


def test_the_largest_come_first_and_the_rest_is_counted():
  names, text = rows('show_parameters=3')
  largest = ['stack/blocks/feed_forward/up/kernel', 'stack/blocks/feed_forward/down/kernel']
  assert set(names[1:3]) == set(largest)
  assert names[3:] == ['embed/table', '...', 'all']
  assert '... 8 more' in text and '--config.show_parameters=0' in text
  assert '117,056' in text.splitlines()[-1]
  rest = 117_056 - 2 * 32_768 - 16_384
  assert f'{rest:,}' in text


def test_a_word_shows_all():
  names, text = rows('show_parameters=0')
  assert len(names) == 13 and names[1] == 'embed/table'
  assert 'more' not in text


def test_frozen_and_new_come_before_larger_ones(tmp_path):
  names, text = rows(
    'show_parameters=3', 'optimizer.freeze=position', f'init.path={tmp_path}',
    'init.reinit=norm_out',
  )  # fmt: skip
  assert names[1:3] == ['norm_out/scale', 'position']
  lines = text.splitlines()
  assert lines[1].endswith('new') and lines[2].endswith('frozen')
  assert names[-2:] == ['frozen', 'all'] and '2,048' in lines[-2]
