"""CIFAR-10 with a small residual network.

    python -m bmx.main --config=configs/cifar10_resnet.py --config.data.data_dir=TFDS_DATA_DIR

Reaches 74.5 % of the 2,000 test images of the set `cifar10_jpeg` after its 10,000 training images,
in 2,180 CPU seconds (one seed; 2026-11-28, experiments/vision/run.py cifar10_resnet).
"""

from bmx.config import base, check_variant


def get_config(variant: str = ''):
  c = base('residual network on CIFAR-10')
  c.classes = 10
  c.batch_size = 128
  c.epochs = 24.0  # 20 minutes of two CPU cores
  c.task = {
    'call': 'bmx.tasks.classification:Classification',
    'smoothing': 0.1,
    'model': {
      'call': 'bmx.models.resnet:ResNet',
      'num_outputs': c.get_ref('classes'),
      'stages': (1, 1, 1, 1),
      'features': 32,
      'stem': 'small',
      'dtype': c.get_ref('dtype'),
    },
  }
  c.data = {
    'call': 'bmx.data.tfds:tfds',
    'name': 'cifar10_jpeg',
    'split': 'train',
    'data_dir': '',
    'mean': (0.4914, 0.4822, 0.4465),  # of the training images
    'std': (0.247, 0.2435, 0.2616),
    'crop': 4,
    'flip': True,
    'augment': {'call': 'bmx.data.images.augment:augment'},  # further words: docs/vision.md
  }
  c.eval.test = {'split': 'test', 'batch_size': 500}
  c.schedule = {'call': 'bmx.optim.schedules:cosine', 'peak': 0.2, 'warmup': 200}
  c.optimizer = {
    'call': 'bmx.optim.optimizers:sgd',
    'momentum': 0.9,
    'nesterov': True,
    'weight_decay': 5e-4,
  }
  c.every = {'log': 50, 'eval': 500, 'save': 500}
  check_variant(variant, 'tiny')
  if variant == 'tiny':
    c.epochs, c.steps, c.batch_size = 0.0, 100, 64
    c.task.model.update(stages=(1, 1), features=8)
    c.data = {'call': 'bmx.data.builtin:digits', 'split': 'train', 'crop': 1}
    c.eval.test = {'split': 'test', 'batch_size': 64}
    c.schedule.warmup = 2
    c.every = {'log': 25, 'eval': 0, 'save': 50}
  return c
