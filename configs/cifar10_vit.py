"""CIFAR-10 with a small vision transformer, from scratch.

    python -m bmx.main --config=configs/cifar10_vit.py --config.data.data_dir=TFDS_DATA_DIR

Reaches: not measured yet; experiments/vision/run.py cifar10_vit measures it. A transformer without
pre-training learns less from 10,000 images than a convolutional network does: cifar10_resnet.
"""

from bmx.config import base, check_variant


def get_config(variant: str = ''):
  c = base('vision transformer on CIFAR-10')
  c.classes = 10
  c.batch_size = 128
  c.epochs = 24.0
  c.task = {
    'call': 'bmx.tasks.classification:Classification',
    'smoothing': 0.1,
    'mixup': 0.2,
    'model': {
      'call': 'bmx.models.vit:ViT',
      'num_outputs': c.get_ref('classes'),
      'image_size': 32,
      'patch_size': 4,  # 64 patches
      'width': 128,
      'depth': 6,
      'heads': 4,
      'mlp_dim': 256,
      'pool': 'mean',
      'drop_path': 0.1,
      'attention': 'xla',
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
    'augment': {'call': 'bmx.data.images.augment:augment', 'randaugment': 1, 'magnitude': 9},
  }
  c.eval.test = {'split': 'test', 'batch_size': 500}
  c.schedule = {'call': 'bmx.optim.schedules:cosine', 'peak': 1e-3, 'warmup': 200}
  c.optimizer = {'call': 'bmx.optim.optimizers:adamw', 'weight_decay': 0.05, 'clip': 1.0}
  c.every = {'log': 100, 'eval': 470, 'save': 470}
  check_variant(variant, 'tiny')
  if variant == 'tiny':
    c.epochs, c.steps, c.batch_size = 0.0, 100, 64
    c.task.update(mixup=0.0)
    c.task.model.update(image_size=8, patch_size=2, width=32, depth=1, mlp_dim=64)
    c.data = {'call': 'bmx.data.builtin:digits', 'split': 'train', 'crop': 1}
    c.eval.test = {'split': 'test', 'batch_size': 64}
    c.schedule.update(peak=5e-3, warmup=5)
    c.every = {'log': 25, 'eval': 0, 'save': 50}
  return c
