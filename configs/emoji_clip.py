"""Images with captions: two towers in one space (CLIP), on pairs of one's own or EmojiTwo.

    bmx train emoji_clip --data.path=emojitwo/captions.jsonl --data.images=emojitwo/images_32.npz
    bmx train emoji_clip --data.path=FOLDER --data.images= --data.text="('caption',)"
    python -m bmx.main --config=configs/emoji_clip.py --config.data.path=captions.jsonl ...

FOLDER holds images and a table of their files and captions. A fifth of the pairs is held out;
retrieval in both directions is measured on it. `bmx predict RUN --input=FOLDER
--predict.labels="('cat','dog')"` classifies images among texts (docs/clip.md). `:sigmoid` has the
loss of SigLIP; `:vit` the towers of CLIP, for more pairs; `:finetune` starts from --init.path=DIR,
a CLIP or SigLIP of Hugging Face or a run.

Reaches recall@10 of .549 from image to text and .566 back on EmojiTwo's 402 held-out pairs, where
chance is .025 and a linear model of pixels and words .485 and .542 (3 seeds, .527 to .562 and .550
to .580, 30 CPU seconds each, 2026-11-28, one shared CPU core: experiments/clip/run.py).
"""

from bmx.config import base, check_variant


def get_config(variant: str = ''):
  check_variant(variant, 'vit', 'sigmoid', 'finetune', 'tiny')
  c = base('CLIP on images and captions')
  c.batch_size = 128
  c.epochs = 25.0
  c.length = 32  # of the captions; a hundredth of EmojiTwo's is longer
  c.vocab = 1500
  c.task = {
    'call': 'bmx.tasks.contrastive:Contrastive',
    'kind': 'softmax',
    'model': {
      'call': 'bmx.models.clip:CLIP',
      'temperature': 0.07,
      'bias': False,
      'image': {
        'call': 'bmx.models.cnn:CNN',
        'num_outputs': 256,
        'features': (16, 32, 64),
        'kernel_size': 3,
        'widths': (),
        'activation': 'gelu',
        'dtype': c.get_ref('dtype'),
      },
      'text': {
        'call': 'bmx.models.clip:BagOfTokens',  # a transformer learns 1,606 captions by heart
        'vocab_size': 'auto',  # of the tokenizer of the data
        'end_token': 'auto',
        'max_seq_len': c.get_ref('length'),
        'dropout': 0.2,
        'dtype': c.get_ref('dtype'),
      },
    },
  }
  c.task.model.text.num_outputs = c.task.model.image.get_ref('num_outputs')
  c.data = {
    'call': 'bmx.data.images.captions:captions',
    'path': '',
    'images': '',
    'text': ('name', 'keywords'),
    'size': 32,
    'length': c.get_ref('length'),
    'split': 'train',
    'holdout': 0.2,
  }
  c.data.tokenizer = {
    'call': 'bmx.data.text.tokenizer_train:trained',
    'vocab_size': c.get_ref('vocab'),
    'path': c.data.get_ref('path'),
    'field': 'name',
  }
  c.eval.valid = {'split': 'valid', 'metrics': tuple(f'bmx.tasks.hits:{m}' for m in METRICS)}
  c.schedule = {'call': 'bmx.optim.schedules:cosine', 'peak': 4e-3, 'warmup': 20, 'floor': 0.0}
  c.optimizer = {'call': 'bmx.optim.optimizers:adamw', 'weight_decay': 0.2, 'clip': 1.0}
  c.every = {'log': -20, 'eval': -5, 'save': 10_000}
  if variant in ('vit', 'tiny'):
    _transformers(c)
  if variant == 'sigmoid':
    c.task.kind = 'sigmoid'
    c.task.model.update(bias=True, temperature=0.1)
  if variant == 'finetune':
    _finetune(c)
  if variant == 'tiny':
    _tiny(c)
  return c


METRICS = (
  'image_to_text_recall_at_1', 'image_to_text_recall_at_10', 'text_to_image_recall_at_1',
  'text_to_image_recall_at_10', 'chance_recall_at_1', 'chance_recall_at_10',
)  # fmt: skip


def _transformers(c):
  """The towers of CLIP, for more pairs than EmojiTwo has."""
  c.epochs, c.length = 60.0, 16
  words = {'dropout': 0.1, 'attention': 'auto', 'dtype': c.get_ref('dtype')}
  c.task.model.image = {
    'call': 'bmx.models.vit:ViT',
    'num_outputs': 128,
    'image_size': 32,
    'patch_size': 8,
    'width': 128,
    'depth': 2,
    'heads': 4,
    'pre_norm': True,  # as CLIP's
    'patch_bias': False,
    'head_bias': False,
    'activation': 'quick_gelu',
    'eps': 1e-5,
    **words,
  }
  c.task.model.text = {
    'call': 'bmx.models.clip:TextTower',
    'vocab_size': 'auto',
    'end_token': 'auto',
    'max_seq_len': c.get_ref('length'),
    'num_outputs': c.task.model.image.get_ref('num_outputs'),
    'width': 128,
    'depth': 1,
    'heads': 4,
    **words,
  }
  c.data.update(size=c.task.model.image.get_ref('image_size'), crop=3)
  c.schedule.update(peak=1e-3, warmup=50)


def _finetune(c):
  """Starts from a CLIP of Hugging Face, or a run; sizes and tokenizer come from there."""
  c.length, c.batch_size, c.epochs = 77, 64, 5.0
  words = {'attention': 'auto', 'dtype': c.get_ref('dtype')}
  c.task.model = {
    'call': 'bmx.adapt.restore:model',
    'path': c.init.get_ref('path'),
    'image': dict(words),
    'text': dict(words),
  }
  c.data = {
    'call': 'bmx.data.images.captions:captions',
    'path': '',
    'images': '',
    'text': ('caption',),
    'size': 224,
    'length': c.get_ref('length'),
    'split': 'train',
    'holdout': 0.2,
    'tokenizer': {'call': 'bmx.data.text.tokenizer:load', 'path': c.init.get_ref('path')},
  }
  c.schedule.update(peak=1e-5, warmup=10)


def _tiny(c):
  """Pictures of two digits, 'three above seven'."""
  c.epochs, c.steps, c.batch_size, c.length = 0.0, 60, 64, 8
  c.task.model.image.update(
    num_outputs=32, image_size=16, patch_size=4, width=32, depth=2, dropout=0.0
  )
  c.task.model.text.update(width=32, depth=1, dropout=0.0)
  c.data = {
    'call': 'bmx.data.images.captioned_digits:digits',
    'split': 'train',
    'length': c.get_ref('length'),
  }
  c.schedule.update(peak=3e-3, warmup=5)
  c.every = {'log': 15, 'eval': 0, 'save': 30}
