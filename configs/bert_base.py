"""BERT base with both heads (Devlin et al. 2019).

110,106,428 parameters with the English vocabulary of 30,522.

    python -m bmx.main --config=configs/bert_base.py --config.paths="('wiki.jsonl',)"
    --config.tokenizer=DIR

DIR holds a tokenizer.json with BERT's special tokens, for instance that of bert-base-uncased.
Documents of the paths are cut into sentences; a row is two sentences, the second in half of the
rows one from elsewhere.

Reaches the published number of parameters; it has not been trained to the end.
"""

from bmx.config import base, check_variant


def get_config(variant: str = ''):
  c = base('BERT base')
  c.paths = ()
  c.tokenizer = 'tokenizer.json'
  c.vocab = 30_522
  c.length = 512
  c.batch_size = 256
  c.steps = 1_000_000
  c.dtype = 'bfloat16'
  c.task = {
    'call': 'bmx.tasks.encoder:MaskedLM',
    'rate': 0.15,
    'whole': False,
    'mask': 103,
    'special': (0, 100, 101, 102, 103),
    'model': {
      'call': 'bmx.models.bert:Pretraining',
      'next_sentence': True,
      'encoder': {
        'call': 'bmx.models.bert:BERT',
        'vocab_size': c.get_ref('vocab'),
        'vocab_pad': 0,
        'max_seq_len': c.get_ref('length'),
        'width': 768,
        'depth': 12,
        'heads': 12,
        'types': 2,
        'dropout': 0.1,
        'scan': True,
        'remat': 'none',
        'attention': 'auto',  # by the kind of device
        'dtype': c.get_ref('dtype'),
      },
    },
  }
  c.data = {
    'call': 'bmx.data.text.pairs:pairs',
    'paths': c.get_ref('paths'),
    'field': 'text',
    'unit': 'paragraph',
    'split': 'train',
    'length': c.get_ref('length'),
    'tokenizer': {'call': 'bmx.data.text.tokenizer:load', 'path': c.get_ref('tokenizer')},
  }
  c.eval.valid = {'split': 'valid', 'batch_size': 128}
  c.schedule = {
    'call': 'bmx.optim.schedules:cosine',
    'peak': 1e-4,
    'warmup': 10_000,
    'floor': 0.0,
  }
  c.optimizer = {'call': 'bmx.optim.optimizers:adamw', 'weight_decay': 0.01, 'clip': 1.0}
  c.every = {'log': 100, 'eval': 10_000, 'save': 5_000}
  if check_variant(variant, 'tiny') == 'tiny':
    c.vocab, c.length, c.batch_size, c.steps, c.dtype = 512, 32, 16, 60, 'float32'
    c.task.mask, c.task.special = 4, (0, 1, 2, 3, 4)
    c.task.model.encoder.update(width=64, depth=2, heads=4, dropout=0.0)
    c.data.tokenizer = {
      'call': 'bmx.data.text.tokenizer_train:trained',
      'kind': 'wordpiece',
      'vocab_size': c.get_ref('vocab'),
      'unit': 'line',
    }
    c.eval.valid.batch_size = 512
    c.schedule.update(peak=3e-3, warmup=4)
    c.every = {'log': 15, 'eval': 0, 'save': 30}
  return c
