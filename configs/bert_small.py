"""A small BERT, pre-trained with masked words.

Vocabulary 10,000, width 512, 8 heads, 2 layers, sequences of 50, batch 32.

    python -m bmx.main --config=configs/bert_small.py --config.paths="('wiki.txt','books.jsonl')"

Paths may be plain text (a document a line), .jsonl and .csv (field `text`), SQuAD's .json, or
tfds:NAME/SPLIT; without any it reads the source of the installed Python's standard library. A
WordPiece tokenizer is trained once on the same text and is stored with the run.

Reaches 30.2 % of the masked words on a million words (rows of 128, 4,000 steps of 16; 1 seed;
2026-11-25, two CPU cores: experiments/bert_finetune/run.py), in 44 min beside other jobs.
"""

from bmx.config import base, check_variant


def get_config(variant: str = ''):
  c = base('BERT, small')
  c.paths = ()
  c.field = 'text'
  c.data_dir = ''  # of TFDS
  c.vocab = 10_000
  c.length = 50
  c.batch_size = 32
  c.steps = 10_000
  c.task = {
    'call': 'bmx.tasks.encoder:MaskedLM',
    'rate': 0.15,
    'whole': False,
    'mask': 4,
    'special': (0, 1, 2, 3, 4),  # of a WordPiece tokenizer that is learned here
    'model': {
      'call': 'bmx.models.bert:Pretraining',
      'next_sentence': False,
      'encoder': {
        'call': 'bmx.models.bert:BERT',
        'vocab_size': c.get_ref('vocab'),
        'max_seq_len': c.get_ref('length'),
        'width': 512,
        'depth': 2,
        'heads': 8,
        'mlp_dim': 0,
        'types': 2,
        'dropout': 0.1,
        'scan': False,
        'remat': 'none',
        'attention': 'auto',  # by the kind of device
        'dtype': c.get_ref('dtype'),
      },
    },
  }
  c.data = {
    'call': 'bmx.data.text.packing:packed',
    'paths': c.get_ref('paths'),
    'field': c.get_ref('field'),
    'data_dir': c.get_ref('data_dir'),
    'unit': 'line',
    'split': 'train',
    'length': c.get_ref('length'),
    'words': False,
    'tokenizer': {
      'call': 'bmx.data.text.tokenizer_train:trained',
      'kind': 'wordpiece',
      'vocab_size': c.get_ref('vocab'),
      'paths': c.get_ref('paths'),
      'field': c.get_ref('field'),
      'data_dir': c.get_ref('data_dir'),
      'unit': 'line',
    },
  }
  c.eval.valid = {'split': 'valid', 'batch_size': 128}
  c.schedule = {'call': 'bmx.optim.schedules:cosine', 'peak': 5e-4, 'warmup': 500, 'floor': 1e-5}
  c.optimizer = {
    'call': 'bmx.optim.optimizers:adamw',
    'b2': 0.98,
    'weight_decay': 0.01,
    'clip': 1.0,
  }
  c.every = {'log': 100, 'eval': 1000, 'save': 1000}
  if check_variant(variant, 'tiny') == 'tiny':
    c.vocab, c.length, c.batch_size, c.steps = 512, 32, 16, 40
    c.data.unit = 'paragraph'
    c.task.model.encoder.update(width=64, heads=4, dropout=0.0)
    c.schedule.update(peak=3e-3, warmup=4)
    c.every = {'log': 10, 'eval': 0, 'save': 20}
  return c
