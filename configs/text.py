"""Texts of one's own, classified from scratch: a table with a column of texts, or a folder.

    bmx train text --data.path=reviews.csv --data.text=review --data.label=rating
    bmx train text --data.path=FOLDER          # FOLDER/CLASS/*.txt
    python -m bmx.main --config=configs/text.py --config.data.path=FILE --config.data.text=COLUMN
    python -m bmx.main --config=configs/text.py:regression --config.data.path=FILE
    python -m bmx.main --config=configs/text.py:lstm --config.data.path=FILE

The tokenizer is trained on the same texts, the encoder is small and starts from random weights; a
fifth of the texts is held out. bert_finetune starts from pre-trained weights. `:lstm` reads the
texts with a bidirectional LSTM (docs/recurrent.md).

Reaches 86.9 % of the held-out fifth of SST-2's training phrases after 1,000 steps, in 161 s (1
seed; phrases of one sentence stand on both sides; 2026-11-27, two CPU cores:
experiments/recipes/run.py text).
"""

from bmx.config import base, check_variant


def get_config(variant: str = ''):
  check_variant(variant, 'lstm', 'regression', 'tiny', 'tiny_lstm')
  c = base('encoder on labelled texts')
  c.vocab = 8192
  c.length = 64
  c.batch_size = 32
  c.epochs = 2.0
  c.task = {
    'call': 'bmx.tasks.encoder:TextClassification',
    'model': {
      'call': 'bmx.models.bert:Classifier',
      'num_outputs': 'auto',  # the classes of the data
      'encoder': {
        'call': 'bmx.models.bert:BERT',
        'vocab_size': c.get_ref('vocab'),
        'max_seq_len': c.get_ref('length'),
        'width': 128,
        'depth': 2,
        'heads': 4,
        'dropout': 0.1,
        'attention': 'auto',
        'dtype': c.get_ref('dtype'),
      },
    },
  }
  c.data = {
    'call': 'bmx.data.text.text_classification:text_classification',
    'path': '',
    'text': 'text',
    'label': 'label',
    'split': 'train',
    'holdout': 0.2,
    'length': c.get_ref('length'),
  }
  c.data.tokenizer = {
    'call': 'bmx.data.text.tokenizer_train:trained',
    'vocab_size': c.get_ref('vocab'),
    'path': c.data.get_ref('path'),
    'field': c.data.get_ref('text'),
    'unit': 'file',
  }
  c.eval.valid = {'split': 'valid', 'batch_size': 256}
  c.schedule = {'call': 'bmx.optim.schedules:cosine', 'peak': 1e-3, 'warmup': 0, 'floor': 0.0}
  c.optimizer = {'call': 'bmx.optim.optimizers:adamw', 'weight_decay': 0.05, 'clip': 1.0}
  c.every = {'log': -20, 'eval': -10, 'save': 1000}  # 20 and 10 times a run
  c.keep = {'last': 1, 'metric': 'eval/valid/loss', 'mode': 'min'}
  if variant == 'regression':
    c.task.call = 'bmx.tasks.encoder:TextRegression'
    c.data.regression = True
  if variant.endswith('lstm'):
    c.task.model = {
      'call': 'bmx.models.recurrent:RecurrentClassifier',
      'num_outputs': 'auto',
      'vocab_size': c.get_ref('vocab'),
      'width': 128,
      'bidirectional': True,
      'dropout': 0.1,
      'dtype': c.get_ref('dtype'),
    }
  if variant.startswith('tiny'):
    c.vocab, c.length, c.epochs, c.steps = 512, 32, 0.0, 60
    model = c.task.model if variant.endswith('lstm') else c.task.model.encoder
    model.width = 64
    c.data = {
      'call': 'bmx.data.text.text_classification:library',
      'split': 'train',
      'holdout': 0.1,
      'length': c.get_ref('length'),
      'tokenizer': {
        'call': 'bmx.data.text.tokenizer_train:trained',
        'vocab_size': c.get_ref('vocab'),
        'unit': 'line',
      },
    }
    c.eval.valid = {'split': 'valid'}
    c.schedule.peak = 2e-3
    c.every = {'log': 15, 'eval': 0, 'save': 30}
  return c
