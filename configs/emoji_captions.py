"""Captions of images, written by a decoder: on pairs of one's own, or on EmojiTwo.

    bmx train emoji_captions --data.path=captions.jsonl --data.images=images_32.npz
    bmx train emoji_captions --data.path=FOLDER --data.images= --data.text="('caption',)"
    python -m bmx.main --config=configs/emoji_captions.py --config.data.path=captions.jsonl ...

FOLDER holds images and a table of their files and captions. A fifth of the pairs is held out; BLEU
and chrF are measured on it. `bmx predict RUN --input=FOLDER` writes a caption for each image
(docs/captions.md).

Reaches 6.5 BLEU and 20.7 chrF on EmojiTwo's 402 held-out pairs, where the same captions of other
pictures have 0.3 and 10.7 (1 seed, 160 CPU seconds, 2026-11-28, one shared CPU core:
experiments/captions/run.py).
"""

from bmx.config import base, check_variant


def get_config(variant: str = ''):
  check_variant(variant, 'tiny')
  c = base('captions of images')
  c.batch_size = 64
  c.epochs = 30.0
  c.length = 20  # of the captions: the longest name has 18 and an end
  c.vocab = 1000
  c.task = {
    'call': 'bmx.tasks.captioning:Captioning',
    'smoothing': 0.1,
    'num_beams': 3,
    'max_new_tokens': c.get_ref('length'),
    'model': {
      'call': 'bmx.models.to_text:ToText',
      'vocab_size': 'auto',  # of the tokenizer of the data
      'max_seq_len': c.get_ref('length'),
      'width': 128,
      'depth': 2,
      'heads': 4,
      'positions': 'learned',  # of the size of the embedded tokens, unlike sinusoids
      'dropout': 0.1,
      'attention': 'auto',
      'dtype': c.get_ref('dtype'),
      'encoder': {
        'call': 'bmx.models.vit:ViT',
        'num_outputs': 0,  # the decoder reads the patches, not the head
        'image_size': 32,
        'patch_size': 8,
        'width': 128,
        'depth': 2,
        'heads': 4,
        'pool': 'mean',  # without a token of the class
        'dropout': 0.1,
        'attention': 'auto',
        'dtype': c.get_ref('dtype'),
      },
    },
  }
  c.data = {
    'call': 'bmx.data.images.captions:captions',
    'path': '',
    'images': '',
    'text': ('name',),
    'written': True,
    'size': c.task.model.encoder.get_ref('image_size'),
    'length': c.get_ref('length'),
    'split': 'train',
    'holdout': 0.2,
    'crop': 3,
  }
  c.data.tokenizer = {
    'call': 'bmx.data.text.tokenizer_train:trained',
    'kind': 'bpe',
    'vocab_size': c.get_ref('vocab'),
    'path': c.data.get_ref('path'),
    'field': 'name',
  }
  metrics = tuple(f'bmx.tasks.translation:{name}' for name in ('bleu', 'chrf'))
  c.eval.valid = {'split': 'valid', 'metrics': metrics}
  c.schedule = {'call': 'bmx.optim.schedules:cosine', 'peak': 1e-3, 'warmup': 50, 'floor': 0.0}
  c.optimizer = {'call': 'bmx.optim.optimizers:adamw', 'weight_decay': 0.1, 'clip': 1.0}
  c.every = {'log': -20, 'eval': -2, 'save': 10_000}
  if variant == 'tiny':
    _tiny(c)
  return c


def _tiny(c):
  """Pictures of two digits, 'three above seven'."""
  c.epochs, c.steps, c.batch_size, c.length = 0.0, 60, 64, 5
  c.task.smoothing, c.task.num_beams = 0.0, 1
  c.task.model.update(width=32, depth=1, dropout=0.0)
  c.task.model.encoder.update(image_size=16, patch_size=4, width=32, depth=1, dropout=0.0)
  c.data = {
    'call': 'bmx.data.images.captioned_digits:digits',
    'split': 'train',
    'written': True,
    'length': c.get_ref('length'),
  }
  c.schedule.update(peak=5e-3, warmup=5)
  c.every = {'log': 15, 'eval': 0, 'save': 30}
