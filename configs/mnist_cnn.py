"""MNIST with a small convolutional network.

    python -m bmx.main --config=configs/mnist_cnn.py --config.data.data_dir=TFDS_DATA_DIR

Reaches 99.42 % on the test split (one seed; 2026-11-24, two CPU cores, 12 minutes).

`:published` is the often copied tutorial: one 5×5 convolution of 32, SGD 0.001 with momentum 0.9,
batch 100.
"""

from bmx.config import base, check_variant


def get_config(variant: str = ''):
  c = base('convolutional network on MNIST')
  c.classes = 10
  c.batch_size = 128
  c.epochs = 6.0
  c.task = {
    'call': 'bmx.tasks.classification:Classification',
    'model': {
      'call': 'bmx.models.cnn:CNN',
      'num_outputs': c.get_ref('classes'),
      'features': (32, 64),
      'kernel_size': 5,
      'widths': (128,),
      'norm': 'batch',
      'dropout': 0.3,
      'dtype': c.get_ref('dtype'),
    },
  }
  c.data = {
    'call': 'bmx.data.tfds:tfds',
    'name': 'mnist',
    'split': 'train',
    'data_dir': '',
    'mean': (0.1307,),
    'std': (0.3081,),
    'crop': 2,
    'flip': False,
  }
  c.eval.test = {'split': 'test', 'batch_size': 1000}
  c.schedule = {'call': 'bmx.optim.schedules:cosine', 'peak': 2e-3, 'warmup': 200}
  c.optimizer = {'call': 'bmx.optim.optimizers:adamw', 'weight_decay': 0.01}
  c.every = {'log': 100, 'eval': 500, 'save': 500}
  check_variant(variant, 'published', 'tiny')
  if variant == 'published':
    c.batch_size, c.epochs = 100, 10.0
    c.task.model.update(features=(32,), widths=(128,), norm='', dropout=0.0)
    c.data.crop = 0
    c.schedule = {'call': 'bmx.optim.schedules:constant', 'peak': 0.001}
    c.optimizer = {'call': 'bmx.optim.optimizers:sgd', 'momentum': 0.9}
  if variant == 'tiny':
    c.epochs, c.steps, c.batch_size = 0.0, 30, 64
    c.task.model.update(features=(8,), kernel_size=3, widths=(32,))
    c.data = {'call': 'bmx.data.builtin:digits', 'split': 'train', 'crop': 1}
    c.eval.test = {'split': 'test', 'batch_size': 64}
    c.schedule.warmup = 2
    c.every = {'log': 10, 'eval': 0, 'save': 10}
  return c
