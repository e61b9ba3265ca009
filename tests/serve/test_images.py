"""Images of runs: grids while a model trains, `bmx generate`, and a classifier that judges them."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from bmx import cli, experiment
from bmx import config as recipes
from bmx.core.errors import InputError
from bmx.core.images import ImageOptions
from bmx.modes.judge import Judge, judged, real_images
from bmx.serve.hooks import check_pixels
from bmx.serve.images import ImageSampler
from bmx.tasks import grids
from bmx.train import loop
from bmx.train.run import restored
from bmx.train.state import state_spec
from tests.test_bad_input import own_logging

NIGHTLY = pytest.mark.nightly


def build(name, *words, devices=1):
  words = [f'mesh.data={devices}', 'steps=4', 'schedule.warmup=1', *words]
  config, full = recipes.load(f'{name}:tiny', words)
  return experiment.build(config, full, jax.devices()[:devices])


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run of flow matching of two steps, and one of the judge."""
  folder = tmp_path_factory.mktemp('images')
  loop.run(build('digits_mlp', 'steps=60'), folder / 'judge')
  words = ['mesh.data=1', 'steps=4', 'schedule.warmup=1']
  config, full = recipes.load('mnist_flow:tiny', words)
  config.hooks.samples.every = 2
  judge = {'judge': str(folder / 'judge'), 'count': 20, 'features': 'dense_1$'}
  config.hooks.judge = {'call': 'bmx.modes.judge:JudgeImages', **judge}
  loop.run(experiment.build(config, full, jax.devices()[:1]), folder / 'run')
  return folder


def pixels(path):
  with Image.open(path) as image:
    return np.asarray(image)


def command(*arguments):
  with own_logging():
    return cli.main([*map(str, arguments), '--config.mesh.data=-1'])


def test_a_grid_places_images_row_by_row():
  images = np.arange(6, dtype=np.float32).reshape(6, 1, 1, 1) / 10 + np.zeros((6, 2, 3, 1))
  pixels = grids.grid(np.concatenate([images, np.full((1, 2, 3, 1), 1.7)]), 3)
  assert pixels.shape == (8, 11, 1) and pixels.dtype == np.uint8
  assert pixels[0, 4, 0] == round(25.5) and pixels[3, 0, 0] == round(0.3 * 255)
  assert pixels[6, 0, 0] == 255 and not pixels[2].any() and not pixels[6, 4:].any()


def test_grids_while_a_model_trains(run):
  page = (run / 'run/report.html').read_text()
  assert 'Images of step 4' in page and 'data:image/png;base64,' in page
  shapes = [pixels(run / f'run/samples/{step}.png').shape for step in (2, 4)]
  assert shapes == [(2 * 9 - 1, 10 * 9 - 1)] * 2
  lines = [json.loads(x) for x in (run / 'run/metrics.jsonl').read_text().splitlines()]
  (judged,) = [x for x in lines if 'images/fid' in x]
  assert 0 <= judged['images/asked'] <= 1 and judged['images/fid'] > 0 and judged['step'] == 4


def test_bmx_generate_writes_images(run, tmp_path, capsys):
  """The same as the hook's, of the averaged weights; image i whatever their number."""
  path = run / 'run'
  assert not command('generate', path, f'--output={tmp_path}/a.png', '--config.generate.count=20')
  made, shown = (pixels(p).astype(int) for p in (tmp_path / 'a.png', path / 'samples/4.png'))
  assert np.abs(made - shown).max() <= 1  # eight devices round otherwise than one
  words = ['--config.generate.label=7', '--config.generate.count=5']
  assert not command('generate', path, f'--output={tmp_path}/b.npz', *words)
  found = np.load(tmp_path / 'b.npz')
  assert found['image'].shape == (5, 8, 8, 1) and (found['label'] == 7).all()
  assert found['image'].min() >= 0 and found['image'].max() <= 1
  sampler = ImageSampler(build('mnist_flow'), ImageOptions(7, 3, 2.0, 4, 'euler'))
  x = build('mnist_flow')
  params = restored(x, path, 'latest')[0].ema['params']
  np.testing.assert_allclose(np.clip(sampler(params), 0, 1), found['image'][:3], atol=1e-5)
  assert not command('generate', path)
  assert pixels(path / 'images.png').shape == (10 * 9 - 1, 10 * 9 - 1)


@pytest.mark.parametrize(
  'words, message',
  [
    (['--config.generate.label=12'], 'generate.label=12: expected 0 to 9, or -1'),
    (['--config.generate.temperature=0.5'], 'generate.temperature=0.5: expected 1.0'),
    (['--config.generate.sampler=ddim'], "generate.sampler='ddim': expected one of"),
    (['--prompt=a seven'], '--prompt: expected none'),
    (['--output=grid.jpg'], '--output=grid.jpg: expected a file .png or .npz'),
  ],
)
def test_mistakes_of_a_command(run, words, message, capsys):
  assert command('generate', run / 'run', *words) == 2
  assert message in capsys.readouterr().err


@pytest.mark.parametrize('name', ['digits_mlp:tiny', 'mnist_vae:autoencoder'])
def test_tasks_that_generate_nothing(name):
  config, _ = recipes.load(name, ['mesh.data=1'])
  config.data = {'call': 'bmx.data.builtin:digits'}
  config.eval = {}
  if 'vae' in name:
    config.task.model.update(shape=(8, 8, 1), features=(8,))
  config.hooks.samples = {'call': 'bmx.serve.hooks:SampleImages'}
  with pytest.raises(InputError, match='hooks.samples: .* cannot generate images'):
    experiment.build(config, devices=jax.devices()[:1])


def test_words_that_a_task_does_not_read():
  with pytest.raises(InputError, match='generate.guidance=2.0: expected 1.0, since Adversarial'):
    build('mnist_gan', 'generate.guidance=2.0')
  with pytest.raises(InputError, match='generate.label=3: expected -1, since CausalLM'):
    build('gpt_char', 'generate.label=3')
  with pytest.raises(InputError, match='pixels from -0.5 to 0.5: expected 0 to 1'):
    x = build('mnist_gan')
    x.data.examples.preprocess = lambda b: {**b, 'image': b['image'] / 16 - 0.5}
    check_pixels(x.data)


def test_the_judge_classifies_as_its_run_does(run):
  judge = Judge(str(run / 'judge'), 'dense_1$')
  x = build('digits_mlp')
  images = real_images(x.evals['test'].data)
  labels, features = judge(images)
  true = np.concatenate([x.evals['test'].data.rows(np.arange(360), np.arange(360))['label']])
  lines = [json.loads(x) for x in (run / 'judge/metrics.jsonl').read_text().splitlines()]
  accuracy = [x['eval/test/accuracy'] for x in lines if 'eval/test/accuracy' in x][-1]
  assert np.mean(labels == true) == pytest.approx(accuracy, abs=1e-6)
  assert features.shape == (360, 16)
  found = judged(judge, images, true, features)
  assert found['fid'] == pytest.approx(0, abs=1e-3) and found['asked'] == pytest.approx(accuracy)
  with pytest.raises(InputError, match=r'expected images \(8, 8, 1\), not \(28, 28, 1\)'):
    judge(np.zeros((1, 28, 28, 1)))
  with pytest.raises(InputError, match='expected a run of bmx.tasks.classification'):
    Judge(str(run / 'run'))
  with pytest.raises(InputError, match="features='dense': expected a regex of one module"):
    Judge(str(run / 'judge'), 'dense')(images)


@pytest.mark.parametrize('name', [pytest.param('mnist_flow', marks=NIGHTLY), 'mnist_gan'])
def test_runs_accumulate_and_resume(name, tmp_path):
  """An interrupted run ends with the bits of a whole one."""

  def train(folder, steps):
    config, full = recipes.load(f'{name}:tiny', ['mesh.data=1', f'steps={steps}'])
    config.grad = {'call': 'bmx.train.gradients:Accumulate', 'steps': 2}
    config.schedule.update(steps=4, warmup=1)
    config.hooks, config.eval = {}, {}
    return loop.run(experiment.build(config, full, jax.devices()[:1]), tmp_path / folder)

  whole = train('whole', 4)
  train('parts', 2)
  assert train('parts', 4)['state_digest'] == whole['state_digest']


def test_eight_devices_make_the_images_of_one():
  options = ImageOptions(count=12, sample_steps=2, guidance=2.0)
  one, eight = (build('mnist_flow', devices=n) for n in (1, 8))
  params = jax.tree.map(np.asarray, state_spec(one).create().params)
  images = [ImageSampler(x, options)(params) for x in (one, eight)]
  assert images[0].shape == (12, 8, 8, 1)
  np.testing.assert_allclose(*images, atol=1e-4)
