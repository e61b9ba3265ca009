"""Image models at their published sizes, planned on shapes: no images are read."""

from typing import Any

import numpy as np

from bmx import config as recipes
from bmx import experiment
from bmx.core.data import Spec
from bmx.core.experiment import Experiment
from bmx.train.datafile import DataFile

SIDE, CLASSES = 224, 1000
MODELS: dict[str, dict[str, Any]] = {
  'resnet50': {'call': 'bmx.models.resnet:ResNet', 'depth': 50, 'dtype': 'bfloat16'},
  'vit_b': {
    'call': 'bmx.models.vit:ViT', 'scan': True, 'remat': 'auto', 'attention': 'xla',
    'dtype': 'bfloat16',
  },
}  # fmt: skip


def build(name: str, devices: Any, batch_size: int, **mesh: int) -> Experiment:
  """Returns the experiment of a model of MODELS, on ImageNet's shapes.

  Args:
    name: of the model.
    devices: to plan for.
    batch_size: of all devices together.
    mesh: sizes of mesh axes.
  """
  config = recipes.plain(recipes.base(f'{name} on images of {SIDE} pixels'))
  config |= {
    'batch_size': batch_size,
    'steps': 1000,
    'dtype': 'bfloat16',
    'task': {
      'call': 'bmx.tasks.classification:Classification',
      'model': {'num_outputs': CLASSES, **MODELS[name]},
      'smoothing': 0.1,
    },
    'schedule': {'call': 'bmx.optim.schedules:cosine', 'peak': 1e-3, 'warmup': 100},
    'optimizer': {'call': 'bmx.optim.optimizers:adamw', 'weight_decay': 0.05},
  }
  config['mesh'] = {**config['mesh'], 'data': 1, **mesh}
  spec = {
    'image': Spec((SIDE, SIDE, 3), np.dtype('float32')),
    'label': Spec((), np.dtype('int32')),
    'weights': Spec((), np.dtype('float32')),
  }
  shapes = DataFile(1_281_167, spec, {'num_classes': CLASSES, 'source': 'shapes only'}, {})
  return experiment.build(
    recipes.from_plain(config), name, devices, read=False, evals=False, stored=shapes
  )
