"""Detection of MNIST digits in composed scenes, with an anchor-free detector.

    python -m bmx.main --config=configs/mnist_detect.py --config.data.data_dir=TFDS_DATA_DIR

`--config.data.sprites=FILE.npz` adds drawings, as a class of their own: docs/detection.md. Boxes of
one's own: recipe `coco`.

Reaches an average precision of 0.767, and of 0.974 at an overlap of 0.5, on 300 test scenes of
digits and drawings, in 560 CPU seconds (one seed; 2026-11-28); experiments/vision/run.py
mnist_detect measures three.
"""

from bmx.config import base, check_variant


def get_config(variant: str = ''):
  c = base('detection of digits')
  c.batch_size = 32
  c.steps = 1200
  c.task = {
    'call': 'bmx.tasks.detection:Detection',
    'model': {
      'call': 'bmx.models.detector:Detector',
      'num_outputs': 'auto',  # the classes of the data
      'features': (32, 64, 128),
      'strides': (4,),  # a digit has 14 to 32 pixels: 3 to 8 points
      'width': 64,
      'depth': 2,
      'dtype': c.get_ref('dtype'),
    },
    'detections': 20,  # a scene has at most 4 objects
  }
  c.data = {
    'call': 'bmx.data.images.scenes:scenes',
    'split': 'train',
    'count': 6000,
    'size': 64,
    'objects': (1, 4),
    'source': 'mnist',
    'data_dir': '',
    'sprites': '',
  }
  metrics = tuple(f'bmx.tasks.average_precision:{name}' for name in ('ap', 'ap50', 'ap75'))
  c.eval.valid = {'split': 'valid', 'count': 200, 'batch_size': 100, 'metrics': metrics}
  c.eval.test = {'split': 'test', 'count': 300, 'batch_size': 100, 'metrics': metrics}
  c.schedule = {'call': 'bmx.optim.schedules:cosine', 'peak': 2e-3, 'warmup': 200}
  c.optimizer = {'call': 'bmx.optim.optimizers:adamw', 'weight_decay': 0.01, 'clip': 1.0}
  c.every = {'log': 50, 'eval': 300, 'save': 300}
  c.keep = {'last': 1, 'metric': 'eval/valid/ap', 'mode': 'max'}
  if check_variant(variant, 'tiny') == 'tiny':
    c.steps, c.batch_size = 30, 16
    c.task.model.update(features=(8, 16), strides=(4,), width=16, depth=1)
    c.data.update(source='digits', count=64, size=32, objects=(1, 2))
    c.eval.valid.update(count=16, batch_size=16)
    del c.eval.test
    c.schedule.update(peak=5e-3, warmup=2)
    c.every = {'log': 5, 'eval': 0, 'save': 30}
  return c
