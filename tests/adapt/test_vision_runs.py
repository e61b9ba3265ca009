"""Runs that start from folders of image models and from runs, and become folders."""

import json
import logging

import jax
import numpy as np
import pytest

from bmx import config as recipes
from bmx import experiment
from bmx.adapt import hub, preprocessor, restore
from bmx.core import tree
from bmx.core.data import Spec
from bmx.core.errors import InputError
from bmx.models.vit import ViT
from bmx.modes.merge import merge
from bmx.train import datafile, loop
from tests.models.weights import drawn, shapes

RESNET = {
  'call': 'bmx.models.resnet:ResNet', 'num_outputs': 10, 'stages': (1, 1), 'features': 4,
}  # fmt: skip
VIT = {
  'call': 'bmx.models.vit:ViT', 'num_outputs': 10, 'image_size': 8, 'patch_size': 2, 'width': 8,
  'depth': 1, 'heads': 2,
}  # fmt: skip


def build(model, *overrides):
  config, name = recipes.load('digits_mlp:tiny', ['schedule.warmup=1', *overrides])
  plain = recipes.plain(config)
  plain['task']['model'] = model
  plain['mesh']['data'] = 1
  return experiment.build(recipes.from_plain(plain), name, jax.devices()[:1])


def leaves(state):
  return tree.named({'params': state.params, **state.collections})


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run of a small ResNet, with a moving average."""
  path = tmp_path_factory.mktemp('runs') / 'resnet'
  loop.run(build(RESNET, 'steps=2', 'ema=0.5', 'every.save=2', 'every.log=2'), path)
  return path


def test_a_run_gives_its_statistics_and_a_new_head(run):
  """The averaged ones; a model of other classes starts its head anew and nothing else."""
  old = leaves(build(RESNET, f'init.path={run}').init())
  new = leaves(build(RESNET, f'init.path={run}', 'init.reinit=head').init())
  assert {k for k in old if (old[k] != new[k]).any()} == {'params/head/kernel', 'params/head/bias'}
  fresh = leaves(build(RESNET).init())
  moved = [k for k in old if k.startswith('batch_stats/') and (old[k] != fresh[k]).any()]
  assert len(moved) == sum(k.startswith('batch_stats/') for k in old)


def test_a_folder_of_a_run_starts_another(run, tmp_path):
  """Run -> folder -> run: the same weights and statistics; the processor is that of the data."""
  x = build(RESNET)
  merge(x, run, tmp_path / 'out', stored=datafile.read(run))
  old = leaves(build(RESNET, f'init.path={run}').init())
  again = build(RESNET, f'init.path={tmp_path}/out')
  new = leaves(again.init())
  jax.tree.map(np.testing.assert_array_equal, new, old)
  config = json.loads((tmp_path / 'out' / preprocessor.NAME).read_text())
  assert config['rescale_factor'] == 1 / 16 and config['image_mean'] == [0.0]
  assert config['size'] == {'height': 8, 'width': 8}
  part = restore.concrete({'call': 'bmx.adapt.restore:model', 'path': f'{tmp_path}/out'})
  assert part['call'] == RESNET['call'] and part['stages'] == (1, 1)


@pytest.mark.nightly
def test_positions_of_a_run_are_resized(tmp_path):
  loop.run(build(VIT, 'steps=2', 'every.save=2', 'every.log=2'), tmp_path / 'run')
  finer = {**VIT, 'patch_size': 1, 'num_outputs': 10}
  with pytest.raises(InputError, match='patch/kernel'):
    build(finer, f'init.path={tmp_path}/run').init()
  found = leaves(build(finer, f'init.path={tmp_path}/run', 'init.reinit=patch').init())
  table = leaves(build(VIT, f'init.path={tmp_path}/run').init())['params/position']
  assert found['params/position'].shape == (1 + 64, 8)
  np.testing.assert_array_equal(found['params/position'][0], table[0])


METADATA = {'normalization': {'scale': 255.0, 'mean': (0.5,), 'std': (0.25, 0.5, 1.0)}}
SPEC = {'image': Spec((32, 32, 3), np.dtype('float32'))}
SAME = {
  'image_mean': [0.5, 0.5, 0.5], 'image_std': [0.25, 0.5, 1.0], 'rescale_factor': 1 / 255,
  'size': {'height': 32, 'width': 32},
}  # fmt: skip


@pytest.mark.parametrize(('change', 'expected'), [
  ({}, []),
  ({'size': 32}, []),
  ({'size': {'shortest_edge': 40}, 'do_center_crop': True, 'crop_size': 32}, []),
  ({'image_mean': [0.485, 0.456, 0.406]},
   ['mean=(0.485, 0.456, 0.406) there, (0.5, 0.5, 0.5) in the data']),
  ({'do_normalize': False}, ['mean=(0) there', 'std=(1) there']),
  ({'do_rescale': False}, ['scale=1 there, 255 in the data']),
  ({'size': {'shortest_edge': 224}, 'crop_pct': 0.875}, ['size=(224, 224) there, (32, 32) in']),
])  # fmt: skip
def test_a_processor_is_compared_with_the_data(change, expected, tmp_path, caplog):
  (tmp_path / preprocessor.NAME).write_text(json.dumps(SAME | change))
  with caplog.at_level(logging.WARNING):
    lines = preprocessor.check(str(tmp_path), False, METADATA, SPEC)
  assert len(lines) == len(expected)
  for line, start in zip(lines, expected, strict=True):
    assert line.startswith(start)
    assert line in caplog.text


def test_a_processor_that_is_written_is_read_alike(tmp_path):
  """By transformers, too: it makes the same inputs of the same pixels."""
  transformers = pytest.importorskip('transformers')
  from bmx.data.images.normalization import Normalise

  config = preprocessor.content(METADATA, SPEC)
  (tmp_path / preprocessor.NAME).write_text(json.dumps(config))
  assert preprocessor.check(str(tmp_path), False, METADATA, SPEC) == []
  pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
  theirs = transformers.ViTImageProcessor.from_pretrained(tmp_path)(list(pixels))['pixel_values']
  ours = Normalise(**METADATA['normalization'])({'image': pixels})['image']
  np.testing.assert_allclose(ours, np.stack(theirs).transpose(0, 2, 3, 1), atol=1e-5)


def test_a_processor_with_other_values_is_refused(tmp_path):
  (tmp_path / preprocessor.NAME).write_text(json.dumps(SAME | {'image_mean': 'half'}))
  with pytest.raises(InputError, match='expected numbers in rescale_factor, image_mean'):
    preprocessor.check(str(tmp_path), False, METADATA, SPEC)


def test_a_head_for_the_same_classes_in_another_order(tmp_path):
  from bmx.adapt.classes import check_order

  model = ViT(3, **{k: v for k, v in VIT.items() if k not in ('call', 'num_outputs')})
  params = drawn(shapes(model, np.zeros((1, 8, 8, 1), np.float32)))['params']
  hub.save(tmp_path / 'out', model, params, labels=('bird', 'cat', 'dog'))
  check_order(str(tmp_path / 'out'), False, ['head/kernel'], ('bird', 'cat', 'dog'))
  with pytest.raises(InputError, match='expected one order'):
    check_order(str(tmp_path / 'out'), False, ['head/kernel'], ('cat', 'bird', 'dog'))
