"""Images of one's own: a folder with a folder for each class, or a table of files and classes.

    bmx train images --data.path=photos
    python -m bmx.main --config=configs/images.py --config.data.path=DIR --config.data.size=96

photos/cat/*.jpg, photos/dog/*.jpg, ...; or photos/train/cat, photos/valid/cat, ...; docs/vision.md.
Without a folder valid, a fifth of the images is held out; the checkpoint that is best on it is
kept. --config.init.path=DIR with --config.init.reinit='^head/' starts from other weights.

Reaches: depends on the images.
"""

from bmx.config import base, check_variant


def get_config(variant: str = ''):
  c = base('residual network on images')
  c.batch_size = 64
  c.epochs = 20.0
  c.task = {
    'call': 'bmx.tasks.classification:Classification',
    'smoothing': 0.1,
    'model': {
      'call': 'bmx.models.resnet:ResNet',
      'num_outputs': 'auto',  # the classes of the data
      'stages': (1, 1, 1, 1),
      'features': 32,
      'stem': 'imagenet',  # 'small' for images of about 32 pixels
      'dtype': c.get_ref('dtype'),
    },
  }
  c.data = {
    'call': 'bmx.data.images.folder:images',
    'path': '',
    'size': 64,
    'split': 'train',
    'holdout': 0.2,
    'crop': 8,
    'flip': True,
    'augment': {'call': 'bmx.data.images.augment:augment'},  # further words: docs/vision.md
  }
  c.eval.valid = {'split': 'valid', 'batch_size': 256}
  c.schedule = {'call': 'bmx.optim.schedules:cosine', 'peak': 2e-3, 'warmup': 0}
  c.optimizer = {'call': 'bmx.optim.optimizers:adamw', 'weight_decay': 0.05, 'clip': 1.0}
  c.every = {'log': -20, 'eval': -10, 'save': -10}  # 20 and 10 times a run
  c.keep = {'last': 1, 'metric': 'eval/valid/loss', 'mode': 'min'}
  check_variant(variant, 'tiny')
  if variant == 'tiny':
    c.epochs, c.steps, c.batch_size = 0.0, 100, 64
    c.task.model.update(stages=(1, 1), features=8, stem='small')
    c.data = {'call': 'bmx.data.builtin:digits', 'split': 'train', 'holdout': 0.2, 'crop': 1}
    c.eval.valid = {'split': 'valid', 'batch_size': 64}
    c.schedule.peak = 0.01
    c.every = {'log': 25, 'eval': 0, 'save': 50}
  return c
