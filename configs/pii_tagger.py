"""A tagger of names in texts, for `bmx anonymize`: persons, places, organizations, addresses.

    bmx train pii_tagger --data.path=synth_dataset_v2.json --data.more=wnut17train.conll
    python -m bmx.main --config=configs/pii_tagger.py --config.data.path=texts.jsonl

The file is the synthetic one of presidio-research, or .json, .jsonl or CoNLL of one's own
(bmx.data.text.annotated:texts_of); a fifth of its templates is held out. A bidirectional LSTM on a
tokenizer of the same texts, from random weights. docs/anonymize.md.

Reaches an entity F1 of .457 on the held-out templates in 135 CPU seconds (1 seed; 2026-11-28, one
CPU core: experiments/privacy/anonymize.py has precision and recall by type).
"""

from bmx.config import base, check_variant

# Types of presidio-research and of WNUT-17 -> those of bmx.privacy.anonymize.
TYPES = {
  'PERSON': 'PERSON',
  'GPE': 'LOCATION',
  'LOCATION': 'LOCATION',
  'STREET_ADDRESS': 'ADDRESS',
  'ZIP_CODE': 'ADDRESS',
  'ADDRESS': 'ADDRESS',
  'ORGANIZATION': 'ORGANIZATION',
  'person': 'PERSON',
  'location': 'LOCATION',
  'corporation': 'ORGANIZATION',
}


def get_config(variant: str = ''):
  c = base('tagger of names')
  c.vocab = 1500
  c.length = 96
  c.batch_size = 16
  c.epochs = 8.0
  c.task = {
    'call': 'bmx.tasks.encoder:TokenClassification',
    'model': {
      'call': 'bmx.models.recurrent:RecurrentTagger',
      'num_outputs': 'auto',  # the tags of the data
      'vocab_size': c.get_ref('vocab'),
      'width': 128,
      'depth': 1,
      'dropout': 0.3,
      'dtype': c.get_ref('dtype'),
    },
  }
  c.data = {
    'call': 'bmx.data.text.annotated:annotated',
    'path': '',
    'split': 'train',
    'holdout': 0.2,  # of the groups: templates, or single texts
    'more': (),
    'types': TYPES,
    'length': c.get_ref('length'),
  }
  c.data.tokenizer = {
    'call': 'bmx.data.text.annotated:tokenizer',
    'path': c.data.get_ref('path'),
    'holdout': c.data.get_ref('holdout'),
    'more': c.data.get_ref('more'),
    'vocab_size': c.get_ref('vocab'),
  }
  c.eval.valid = {
    'split': 'valid',
    'batch_size': 64,
    'metrics': ('bmx.tasks.metrics:entity_f1',),
  }
  c.schedule = {'call': 'bmx.optim.schedules:cosine', 'peak': 3e-3, 'warmup': 50, 'floor': 0.0}
  c.optimizer = {'call': 'bmx.optim.optimizers:adamw', 'weight_decay': 0.05, 'clip': 1.0}
  c.every = {'log': -20, 'eval': -4, 'save': -2}  # 20 times, 4 times and twice a run
  c.keep = {'last': 1, 'metric': 'eval/valid/entity_f1', 'mode': 'max'}
  if check_variant(variant, 'tiny') == 'tiny':
    c.vocab, c.length, c.epochs, c.steps = 320, 24, 0.0, 30
    c.task.model.update(width=32, dropout=0.0)
    c.schedule.update(peak=1e-2, warmup=2)
    c.every = {'log': 5, 'eval': 0, 'save': 30}
  return c
