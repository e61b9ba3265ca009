"""The table of parameters at the start of a run."""

import jax

from bmx import config as recipes
from bmx import experiment
from bmx.train.parameters import parameter_table
from bmx.train.state import state_spec


def rows(*overrides, **wrapper):
  """-> (first words of the rows, the table) for a GPT of 11 parameters on one device."""
  config, _ = recipes.load('gpt_char:tiny')
  with config.unlocked():
    config.task = {'inner': config.task.to_dict(), **wrapper} if wrapper else config.task
    config.init.teacher = 'runs/large'
  recipes.apply(config, ['mesh.data=1', *overrides])
  x = experiment.build(config, 'gpt', jax.devices()[:1], read=False)
  text = parameter_table(x, state_spec(x))
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


def test_weights_that_no_step_changes_are_a_line_each():
  """The base in its stored bytes: codes, a scale for each output, a digest, the rest as it is."""
  _, text = rows('init.path=runs/first', call='bmx.adapt.lora:LoRA', base='int8')
  whole, last = text.splitlines()[-2:]
  kernels, outputs = 2 * (4 * 64 * 64 + 2 * 64 * 256), 2 * (5 * 64 + 256)
  size = kernels + 4 * outputs + 4 * (117_056 - kernels) + 32
  assert whole.split()[0] == 'all' and '117,056' not in whole
  assert last.split() == ['frozen', 'base', '117,056', f'{size:,}', 'from', 'runs/first']
  _, text = rows(call='bmx.adapt.lora:LoRA')
  assert text.splitlines()[-1].split() == ['frozen', 'base', '117,056', '468,224', 'random']
  teacher = recipes.plain(recipes.load('gpt_char:tiny')[0].task.model)
  _, text = rows(call='bmx.compress.distill:Distill', teacher=teacher)
  last = text.splitlines()[-1].split()
  assert last == ['teacher', '117,056', '468,224', 'frozen,', 'from', 'runs/large']
