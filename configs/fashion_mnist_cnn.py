"""Fashion-MNIST, or another set of small gray images, with a convolutional network.

    python -m bmx.main --config=configs/fashion_mnist_cnn.py --config.data.data_dir=TFDS_DATA_DIR
    python -m bmx.main --config=configs/fashion_mnist_cnn.py --config.data.name=mnist ...

Reaches: not measured yet on Fashion-MNIST. With --config.data.name=mnist it is the network of
mnist_cnn.py with flips and erased rectangles, which digits do not gain by.
"""

from bmx.config import base, check_variant


def get_config(variant: str = ''):
  c = base('convolutional network on Fashion-MNIST')
  c.classes = 10
  c.batch_size = 128
  c.epochs = 15.0
  c.task = {
    'call': 'bmx.tasks.classification:Classification',
    'smoothing': 0.1,
    'model': {
      'call': 'bmx.models.cnn:CNN',
      'num_outputs': c.get_ref('classes'),
      'features': (32, 64, 128),
      'kernel_size': 3,
      'widths': (128,),
      'norm': 'batch',
      'dropout': 0.3,
      'dtype': c.get_ref('dtype'),
    },
  }
  c.data = {
    'call': 'bmx.data.tfds:tfds',
    'name': 'fashion_mnist',
    'split': 'train',
    'data_dir': '',
    'mean': (0.286,),  # of the training images
    'std': (0.353,),
    'crop': 2,
    'flip': True,
    'augment': {'call': 'bmx.data.images.augment:augment', 'erase': 0.5},
  }
  c.eval.test = {'split': 'test', 'batch_size': 1000}
  c.schedule = {'call': 'bmx.optim.schedules:cosine', 'peak': 2e-3, 'warmup': 200}
  c.optimizer = {'call': 'bmx.optim.optimizers:adamw', 'weight_decay': 0.01}
  c.every = {'log': 100, 'eval': 1000, 'save': 1000}
  check_variant(variant, 'tiny')
  if variant == 'tiny':
    c.epochs, c.steps, c.batch_size = 0.0, 30, 64
    c.task.model.update(features=(8,), widths=(32,))
    c.data = {'call': 'bmx.data.builtin:digits', 'split': 'train', 'crop': 1}
    c.eval.test = {'split': 'test', 'batch_size': 64}
    c.schedule.warmup = 2
    c.every = {'log': 10, 'eval': 0, 'save': 10}
  return c
