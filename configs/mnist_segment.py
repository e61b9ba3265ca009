"""Segmentation of MNIST digits in composed scenes, with a U-Net: a class for each pixel.

    python -m bmx.main --config=configs/mnist_segment.py --config.data.data_dir=TFDS_DATA_DIR

`--config.data.sprites=FILE.npz` adds drawings, as a class of their own: docs/detection.md.

Reaches with drawings a mean intersection over union of .797 on 300 test scenes, 1,520 seconds of
one busy CPU core (1 seed; 2026-11-28; experiments/vision/run.py mnist_segment).
"""

from bmx.config import base, check_variant


def get_config(variant: str = ''):
  c = base('segmentation of digits')
  c.batch_size = 32
  c.steps = 2000
  c.task = {
    'call': 'bmx.tasks.segmentation:Segmentation',
    'model': {
      'call': 'bmx.models.unet:UNet',
      'num_outputs': 'auto',  # the classes of the data and the background
      'features': (8, 16, 32, 64, 128),  # the last has 4 × 4 pixels: a digit fits into its view
      'attention': (False, False, False, False, False),
      'dtype': c.get_ref('dtype'),
    },
    'dice': 1.0,  # most pixels are background: Dice weighs classes alike
  }
  c.data = {
    'call': 'bmx.data.images.scenes:scenes',
    'kind': 'masks',
    'split': 'train',
    'count': 6000,
    'size': 64,
    'objects': (1, 4),
    'source': 'mnist',
    'data_dir': '',
    'sprites': '',
  }
  metrics = ('bmx.tasks.iou:mean_iou',)
  c.eval.valid = {'split': 'valid', 'count': 200, 'batch_size': 100, 'metrics': metrics}
  c.eval.test = {'split': 'test', 'count': 300, 'batch_size': 100, 'metrics': metrics}
  c.schedule = {'call': 'bmx.optim.schedules:cosine', 'peak': 3e-3, 'warmup': 100}
  c.optimizer = {'call': 'bmx.optim.optimizers:adamw', 'weight_decay': 0.01, 'clip': 1.0}
  c.every = {'log': 50, 'eval': 500, 'save': 500}
  c.keep = {'last': 1, 'metric': 'eval/valid/mean_iou', 'mode': 'max'}
  if check_variant(variant, 'tiny') == 'tiny':
    c.steps, c.batch_size = 30, 8
    c.task.model.update(features=(8,), attention=(False,))
    c.data.update(source='digits', count=64, size=32, objects=(1, 2))
    c.eval.valid.update(count=16, batch_size=16)
    del c.eval.test
    c.schedule.update(peak=1e-2, warmup=2)
    c.every = {'log': 5, 'eval': 0, 'save': 30}
  return c
