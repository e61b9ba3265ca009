"""Image models, planned on the shapes of their data: no images are read."""

from typing import Any

import numpy as np

from bmx import config as recipes
from bmx import experiment
from bmx.core.data import Spec
from bmx.core.experiment import Experiment
from bmx.train.datafile import DataFile

# Name -> pixels of a side, classes, images.
DATA = {'imagenet': (224, 1000, 1_281_167), 'cifar10': (32, 10, 10_000)}
MODELS: dict[str, dict[str, Any]] = {
  'resnet50': {'call': 'bmx.models.resnet:ResNet', 'depth': 50, 'dtype': 'bfloat16'},
  'vit_b': {
    'call': 'bmx.models.vit:ViT', 'scan': True, 'remat': 'auto', 'attention': 'xla',
    'dtype': 'bfloat16',
  },
  # The network of configs/cifar10_resnet.py.
  'cifar10_resnet': {
    'call': 'bmx.models.resnet:ResNet', 'stages': (1, 1, 1, 1), 'features': 32, 'stem': 'small',
    'dtype': 'bfloat16',
  },
}  # fmt: skip


def build(name: str, devices: Any, batch_size: int, **mesh: int) -> Experiment:
  """Returns the experiment of a model of MODELS, on the shapes of ImageNet or CIFAR-10.

  Args:
    name: of the model.
    devices: to plan for.
    batch_size: of all devices together.
    mesh: sizes of mesh axes.
  """
  side, classes, images = DATA['cifar10' if 'cifar10' in name else 'imagenet']
  config = recipes.plain(recipes.base(f'{name} on images of {side} pixels'))
  config |= {
    'batch_size': batch_size,
    'steps': 1000,
    'dtype': 'bfloat16',
    'task': {
      'call': 'bmx.tasks.classification:Classification',
      'model': {'num_outputs': classes, **MODELS[name]},
      'smoothing': 0.1,
    },
    'schedule': {'call': 'bmx.optim.schedules:cosine', 'peak': 1e-3, 'warmup': 100},
    'optimizer': {'call': 'bmx.optim.optimizers:adamw', 'weight_decay': 0.05},
  }
  config['mesh'] = {**config['mesh'], 'data': 1, **mesh}
  spec = {
    'image': Spec((side, side, 3), np.dtype('float32')),
    'label': Spec((), np.dtype('int32')),
    'weights': Spec((), np.dtype('float32')),
  }
  shapes = DataFile(images, spec, {'num_classes': classes, 'source': 'shapes only'}, {})
  return experiment.build(
    recipes.from_plain(config), name, devices, read=False, evals=False, stored=shapes
  )
