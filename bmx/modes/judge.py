"""Generated images judged by a classifier that bmx has trained: a hook of the config."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from bmx import config as recipes
from bmx import experiment as experiments
from bmx.core import tree
from bmx.core.data import Data
from bmx.core.errors import InputError
from bmx.core.experiment import Eval, Experiment
from bmx.core.types import facts_of
from bmx.parallel import jit
from bmx.runtime.storage import place
from bmx.serve.images import ImageSampler, image_shape, image_task
from bmx.tasks.classification import Classification
from bmx.tasks.frechet import frechet_distance
from bmx.train import datafile
from bmx.train.evaluate import eval_noise
from bmx.train.package import holds_weights
from bmx.train.run import restored
from bmx.train.rundir import read_config
from bmx.train.state import eval_variables

log = logging.getLogger('bmx')
BATCH = 400  # images that are judged at once
FEATURES = 'MLP_0/dense_0'  # of bmx.models.cnn:CNN, its last hidden layer before the activation


class Judge:
  """A classifier of images in [0, 1], on one device.

  Args:
    folder: its run directory.
    features: regex of the path of the module whose outputs are the features of an image.

  Raises:
    InputError: the folder is not a run of a classifier of images that has trained.
  """

  def __init__(self, folder: str, features: str = FEATURES):
    workdir = place(folder)
    stored = read_config(workdir)
    config = recipes.from_stored(stored['config'])
    config.init.path = ''
    known = datafile.read(workdir)
    if known is None or not holds_weights(workdir):
      raise InputError(f'judge={folder}: expected the directory of a run that has trained')
    config.mesh = dict.fromkeys(config.mesh, 1)
    device = jax.local_devices()[:1]
    x = experiments.build(config, stored.get('name', 'run'), device, evals=False, stored=known)
    if not isinstance(x.task, Classification):
      raise InputError(
        f'judge={folder}: expected a run of bmx.tasks.classification:Classification, not of '
        f'{type(x.task).__name__}'
      )
    self.num_classes, self.shape = facts_of(x.task.model).num_outputs, image_shape(x)
    self.folder, self.features, self.task, self.layout = folder, features, x.task, x.layout
    self.variables = eval_variables(restored(x, workdir, 'latest')[0])
    self.mean, self.std = (np.float32(x.config['data'].get(k, v)) for k, v in
                           (('mean', (0.0,)), ('std', (1.0,))))  # fmt: skip
    self._program = jit(self._judge, x.layout, out_shardings=x.layout.sharding())

  def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Classifies images: float [n, I, J, C] in [0, 1] -> (class int [n], features [n, F]).

    Raises InputError if the images are of another shape than those that the judge was trained on.
    """
    if images.shape[1:] != self.shape:
      raise InputError(f'judge={self.folder}: expected images {self.shape}, not {images.shape[1:]}')
    found = []
    for start in range(0, len(images), BATCH):
      part = images[start : start + BATCH].astype(np.float32)
      rows = np.concatenate([part, np.repeat(part[-1:], BATCH - len(part), 0)])
      out = self._program(self.variables, (rows - self.mean) / self.std)
      found.append([tree.fetch(v)[: len(part)] for v in out])
    labels, features = (np.concatenate(v) for v in zip(*found, strict=True))
    return labels, features

  def _judge(self, variables: Any, image: Any) -> tuple[Any, Any]:
    batch = {'image': image, 'weights': jax.numpy.ones(len(image))}
    out, _ = self.task.forward(
      variables, batch, eval_noise(), train=False, method='logits', capture=(self.features,)
    )
    if len(out.captured) != 1:
      raise InputError(
        f'features={self.features!r}: expected a regex of one module, not of '
        f'{", ".join(out.captured)}'
      )
    (features,) = out.captured.values()
    return out.value.argmax(-1), features.reshape(len(image), -1)


def judged(
  judge: Judge, images: np.ndarray, labels: np.ndarray | None, real: np.ndarray
) -> dict[str, float]:
  """Returns `fid`, and `asked`, the share of images that the judge gives the class asked for.

  Args:
    judge: the classifier.
    images: generated, float [n, I, J, C] in [0, 1].
    labels: classes asked for, int [n]; None: images have none.
    real: features of real images, float [m, F].
  """
  found, features = judge(images)
  result = {'fid': frechet_distance(features, real)}
  return result if labels is None else result | {'asked': float(np.mean(found == labels))}


class JudgeImages:
  """Writes `images/asked` and `images/fid` of images that are generated with the weights of a step.

  In a config: c.hooks.judge = {'call': 'bmx.modes.judge:JudgeImages', 'every': 0, 'judge': RUN}.

  Args:
    judge: run directory of a classifier of the same images and classes.
    count: images, of all classes in turn.
    entry: entry of `eval` whose images are the real ones; '' is `test`, or the first.
    features: see `Judge`.
    seed: of the noise.

  Raises:
    InputError: fewer than two images.
  """

  def __init__(
    self, judge: str, count: int = 1000, entry: str = '', features: str = FEATURES, seed: int = 1
  ):
    if count < 2:
      raise InputError(f'count={count}: expected at least 2 images')
    self.folder, self.features = judge, features
    self.count, self.entry, self.seed = count, entry, seed
    self.judge: Judge | None = None
    self.sampler: Any = None  # made at the first call, with the features of the real images
    self.real: Any = None
    self.merge: Any = None

  def check_experiment(self, experiment: Any) -> None:
    """Raises InputError if the judge knows other images or classes than those of the experiment."""
    x: Experiment = experiment
    if jax.process_count() > 1:
      raise InputError('JudgeImages: expected one process; judge a checkpoint afterwards')
    task, judge = image_task(x.task), self._opened()
    if task is None:
      raise InputError(f'{type(x.task).__name__} cannot generate images')
    if judge.shape != image_shape(x):
      raise InputError(
        f'judge={self.folder}: expected a classifier of images {image_shape(x)}, not {judge.shape}'
      )
    if task.num_classes not in (0, judge.num_classes):
      raise InputError(
        f'judge={self.folder}: expected a classifier of {task.num_classes} classes, not of '
        f'{judge.num_classes}'
      )
    entry_of(x.evals, self.entry)

  def __call__(self, event: Any) -> None:
    """Generates and judges the images of a step."""
    x: Experiment = event.run.experiment
    judge = self._opened()
    if self.sampler is None:
      options = dataclasses.replace(x.images, count=self.count, label=-1)
      self.sampler = ImageSampler(x, options)
      self.real = judge(real_images(entry_of(x.evals, self.entry)))[1]
      self.merge = jit(x.task.merged_params, x.layout)
    images = self.sampler(self.merge(eval_variables(event.state)), self.seed)
    labels = self.sampler.labels() if self.sampler.task.num_classes else None
    found = judged(judge, np.clip(images, 0.0, 1.0), labels, self.real)
    event.write({f'images/{k}': v for k, v in found.items()})

  def _opened(self) -> Judge:
    if self.judge is None:
      self.judge = Judge(self.folder, self.features)
    return self.judge


def entry_of(evals: Mapping[str, Any], name: str) -> Data:
  """Returns the data of an entry of `eval`; of `test` or the first where `name` is ''.

  Raises InputError if it is missing.
  """
  name = name or ('test' if 'test' in evals else next(iter(evals), ''))
  if not isinstance(evals.get(name), Eval):
    raise InputError(f'entry={name!r}: expected an entry of `eval` with images')
  return evals[name].data


def real_images(data: Data) -> np.ndarray:
  """Returns all images of a split, float [N, I, J, C]."""
  steps = range(-(-data.size // data.batch_size))
  parts = []
  for step in steps:
    n = min(data.batch_size, data.size - step * data.batch_size)
    positions = step * data.batch_size + np.arange(n)
    parts.append(data.rows(data.indices(step)[0, :n], positions)['image'])
  return np.concatenate(parts)
