"""CIFAR-10 with a pre-trained ResNet-50: of a Hugging Face folder, or of a run of bmx.

    python -m bmx.main --config=configs/cifar10_resnet50_finetune.py --config.init.path=DIR ...
    python -m bmx.main --config=configs/cifar10_resnet50_finetune.py:published ...

DIR holds config.json and model.safetensors of a ResNet, as transformers writes them, or is a run
whose model has the same words; for another depth set --config.task.model.depth. The head starts
anew; --config.init.reinit=. trains the same model from scratch.

Reaches: not measured, as no pre-trained ResNet-50 is at hand. What pre-training is worth to a small
ResNet: 5.0 points at 50 images a class (3 seeds; experiments/vision/run.py transfer).

`:published` is the often copied tutorial: SGD 0.001 with momentum 0.9, batch 32, random crops with
padding 4, flips, and its means and deviations. The default differs where fine-tuning gains by it: a
rate that falls to 0 along a cosine, Nesterov's momentum, weight decay and label smoothing.
"""

from bmx.config import base, check_variant


def get_config(variant: str = ''):
  c = base('pre-trained ResNet-50 on CIFAR-10')
  c.classes = 10
  c.batch_size = 64
  c.epochs = 10.0
  c.init.reinit = '^head/'  # other classes than those of the pre-training
  c.task = {
    'call': 'bmx.tasks.classification:Classification',
    'smoothing': 0.1,
    'model': {
      'call': 'bmx.models.resnet:ResNet',
      'num_outputs': c.get_ref('classes'),
      'depth': 50,
      'stem': 'imagenet',
      'dtype': c.get_ref('dtype'),
    },
  }
  c.data = {
    'call': 'bmx.data.tfds:tfds',
    'name': 'cifar10_jpeg',
    'split': 'train',
    'data_dir': '',
    'mean': (0.4914, 0.4822, 0.4465),
    'std': (0.2023, 0.1994, 0.2010),  # means of the images' deviations, as the tutorial has them
    'crop': 4,
    'flip': True,
    'augment': {'call': 'bmx.data.images.augment:augment'},  # further words: docs/vision.md
  }
  c.eval.test = {'split': 'test', 'batch_size': 500}
  c.schedule = {'call': 'bmx.optim.schedules:cosine', 'peak': 0.01, 'warmup': 100}
  c.optimizer = {
    'call': 'bmx.optim.optimizers:sgd',
    'momentum': 0.9,
    'nesterov': True,
    'weight_decay': 1e-4,
  }
  c.every = {'log': 50, 'eval': 500, 'save': 500}
  check_variant(variant, 'published', 'tiny')
  if variant == 'published':
    c.batch_size = 32
    c.task.smoothing = 0.0
    c.schedule = {'call': 'bmx.optim.schedules:constant', 'peak': 0.001}
    c.optimizer = {'call': 'bmx.optim.optimizers:sgd', 'momentum': 0.9}
  if variant == 'tiny':  # from scratch: a test has no weights to start from
    c.epochs, c.steps, c.batch_size = 0.0, 100, 64
    c.task.model.update(stages=(1, 1), block='bottleneck', features=4, stem='small')
    c.data = {'call': 'bmx.data.builtin:digits', 'split': 'train', 'crop': 1}
    c.eval.test = {'split': 'test', 'batch_size': 64}
    c.schedule.update(peak=0.2, warmup=2)
    c.every = {'log': 25, 'eval': 0, 'save': 50}
  return c
