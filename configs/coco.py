"""Boxes or masks of one's own: a folder of images with annotations in COCO's format.

    bmx train coco --data.path=FOLDER
    python -m bmx.main --config=configs/coco.py --config.data.path=FOLDER

FOLDER holds the images and annotations.json (docs/detection.md). A fifth of the images is held out;
the checkpoint that is best on it is kept. `coco:masks` learns a class for each pixel.

Reaches: not measured.
"""

from bmx.config import base, check_variant

DETECTION = {
  'call': 'bmx.tasks.detection:Detection',
  'model': {
    'call': 'bmx.models.detector:Detector',
    'num_outputs': 'auto',  # the categories
    'features': (32, 64, 128, 256, 256),
    'strides': (8, 16, 32),  # objects of up to 64, 128 and more pixels of the input
    'width': 128,
    'depth': 2,
  },
}
SEGMENTATION = {
  'call': 'bmx.tasks.segmentation:Segmentation',
  'model': {
    'call': 'bmx.models.unet:UNet',
    'num_outputs': 'auto',  # the categories and the background
    'features': (32, 64, 128, 256),
    'attention': (False, False, False, False),
  },
  'dice': 1.0,
}


def get_config(variant: str = ''):
  c = base('objects in images')
  check_variant(variant, 'masks', 'tiny')
  masks = variant == 'masks'
  c.batch_size = 16
  c.epochs = 50.0
  c.task = SEGMENTATION if masks else DETECTION
  c.task.model.dtype = c.get_ref('dtype')
  c.data = {
    'call': 'bmx.data.images.coco:coco',
    'path': '',
    'images': '',
    'kind': 'masks' if masks else 'boxes',
    'size': 256,
    'split': 'train',
    'holdout': 0.2,
    'flip': True,
  }
  names = ('iou:mean_iou',) if masks else ('average_precision:ap', 'average_precision:ap50')
  c.eval.valid = {'split': 'valid', 'metrics': tuple(f'bmx.tasks.{name}' for name in names)}
  c.schedule = {'call': 'bmx.optim.schedules:cosine', 'peak': 1e-3, 'warmup': 0}
  c.optimizer = {'call': 'bmx.optim.optimizers:adamw', 'weight_decay': 0.01, 'clip': 1.0}
  c.every = {'log': -50, 'eval': -10, 'save': 500}  # 50 and 10 times, however few the images
  c.keep = {'last': 1, 'metric': f'eval/valid/{"mean_iou" if masks else "ap"}', 'mode': 'max'}
  if variant == 'tiny':
    c.epochs, c.steps, c.batch_size = 0.0, 30, 16
    c.task.model.update(features=(8, 16), strides=(4,), width=16, depth=1)
    scenes = {'count': 64, 'size': 32, 'objects': (1, 2), 'source': 'digits'}
    c.data = {'call': 'bmx.data.images.scenes:scenes', 'split': 'train', 'kind': 'boxes', **scenes}
    c.eval.valid.update(count=16, batch_size=16)
    c.schedule.update(peak=5e-3, warmup=2)
    c.every = {'log': 5, 'eval': 0, 'save': 30}
  return c
