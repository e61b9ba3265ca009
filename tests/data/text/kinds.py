"""Tokenizers of the kinds that published models have, learned from a few lines, as folders."""

import json

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = (
  'The cat sat on the mat, and the dog saw it: softly, softly.',
  'Rain fell over the green hills; over the hills, and far away!',
  "Don't the naïve cafés of the town open at noon? They do, they do.",
  'one two three four five six seven eight nine ten',
)
SIZE = 420  # more ids than any of them has


def word_piece(lowercase):
  special = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
  inner = tokenizers.Tokenizer(models.WordPiece(unk_token='[UNK]'))
  inner.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
  inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  inner.train_from_iterator(
    TEXTS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special)
  )
  inner.decoder = decoders.WordPiece(cleanup=False)
  inner.post_processor = processors.BertProcessing(('[SEP]', 3), ('[CLS]', 2))
  names = {'pad': '[PAD]', 'unk': '[UNK]', 'cls': '[CLS]', 'sep': '[SEP]', 'mask': '[MASK]'}
  return inner, names, {}


def byte_pairs(special):
  inner = tokenizers.Tokenizer(models.BPE())
  inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  trainer = trainers.BpeTrainer(
    vocab_size=300, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
  )
  inner.train_from_iterator(TEXTS, trainer)
  inner.decoder = decoders.ByteLevel()
  inner.post_processor = processors.ByteLevel(trim_offsets=False)
  return inner


def gpt2():
  end = '<|endoftext|>'
  return byte_pairs([end]), {'bos': end, 'eos': end, 'unk': end}, {}


def roberta():
  inner = byte_pairs(['<s>', '<pad>', '</s>', '<unk>', '<mask>'])
  inner.post_processor = processors.RobertaProcessing(('</s>', 2), ('<s>', 0))
  return inner, encoder_names(), {}


def encoder_names():
  return {'bos': '<s>', 'eos': '</s>', 'cls': '<s>', 'sep': '</s>', 'pad': '<pad>',
          'unk': '<unk>', 'mask': '<mask>'}  # fmt: skip


def llama():
  special = ['<unk>', '<s>', '</s>']
  inner = tokenizers.Tokenizer(models.BPE(unk_token='<unk>', byte_fallback=True, fuse_unk=True))
  inner.normalizer = normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
  names = special + [f'<0x{byte:02X}>' for byte in range(256)]
  inner.train_from_iterator(
    (text.replace('é', '') for text in TEXTS),
    trainers.BpeTrainer(vocab_size=340, special_tokens=names),
  )
  content = json.loads(inner.to_str())  # the bytes are tokens, but not special ones
  content['added_tokens'] = [t for t in content['added_tokens'] if t['content'] in special]
  inner = tokenizers.Tokenizer.from_str(json.dumps(content))
  inner.decoder = decoders.Sequence(
    [
      decoders.Replace('▁', ' '),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(' ', 1, 0),
    ]
  )
  inner.post_processor = processors.TemplateProcessing(
    single='<s> $A', pair='<s> $A <s>:1 $B:1', special_tokens=[('<s>', 1)]
  )
  return inner, {'bos': '<s>', 'eos': '</s>', 'unk': '<unk>'}, {}


def unigram(special, unknown):
  inner = tokenizers.Tokenizer(models.Unigram())
  inner.normalizer = normalizers.NFKC()
  inner.pre_tokenizer = pre_tokenizers.Metaspace()
  trainer = trainers.UnigramTrainer(vocab_size=110, special_tokens=special, unk_token=unknown)
  inner.train_from_iterator(TEXTS, trainer)
  inner.decoder = decoders.Metaspace()
  begin, end = (inner.token_to_id(token) for token in ('<s>', '</s>'))
  inner.post_processor = processors.TemplateProcessing(
    single='<s> $A </s>',
    pair='<s> $A </s> </s> $B </s>',
    special_tokens=[('<s>', begin), ('</s>', end)],
  )
  return inner, encoder_names(), {}


def characters():
  """A token a character; no special token but that of unknown ones."""
  letters = sorted({'\n', *''.join(TEXTS)})
  inner = tokenizers.Tokenizer(
    models.WordLevel({t: i for i, t in enumerate(['[UNK]', *letters])}, unk_token='[UNK]')
  )
  inner.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r'[\s\S]'), 'isolated')
  inner.decoder = decoders.Fuse()
  inner.add_special_tokens(['[UNK]'])
  return inner, {'unk': '[UNK]'}, {}


def words():
  """Words with an end of text, and no post-processor."""
  found = sorted({w for text in TEXTS for w in text.replace(',', ' ,').split()})
  special = ['[unknown]', '[end]']
  inner = tokenizers.Tokenizer(
    models.WordLevel({t: i for i, t in enumerate([*special, *found])}, unk_token='[unknown]')
  )
  inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  inner.add_special_tokens(special)
  return inner, {'unk': '[unknown]', 'eos': '[end]'}, {}


def deepseek():
  """Special tokens that no list of spellings has."""
  begin, end, pad = '<｜begin▁of▁sentence｜>', '<｜end▁of▁sentence｜>', '<｜▁pad▁｜>'
  inner = byte_pairs([begin, end, pad])
  template = processors.TemplateProcessing(
    single=[begin, '$A'], pair=[begin, '$A', f'{begin}:1', '$B:1'], special_tokens=[(begin, 0)]
  )
  inner.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
  names = {'bos': begin, 'eos': end, 'pad': pad}
  return inner, names, {'add_bos_token': True, 'add_eos_token': False}


MADE = {
  'WordPiece, cased': lambda: word_piece(False),
  'WordPiece, uncased': lambda: word_piece(True),
  'GPT-2': gpt2,
  'RoBERTa': roberta,
  'Llama 2': llama,
  'XLM-R': lambda: unigram(['<s>', '<pad>', '</s>', '<unk>', '<mask>'], '<unk>'),
  'CamemBERT': lambda: unigram(
    ['<s>NOTUSED', '<pad>', '</s>NOTUSED', '<unk>', '<s>', '</s>', '<mask>'], '<unk>'
  ),
  'characters': characters,
  'words': words,
  'DeepSeek': deepseek,
}


def write(kind, folder):
  """Writes tokenizer.json and tokenizer_config.json of a kind; returns the folder."""
  inner, names, more = MADE[kind]()
  folder.mkdir(parents=True, exist_ok=True)
  inner.save(str(folder / 'tokenizer.json'))
  config = {f'{role}_token': token for role, token in names.items()}
  config |= {'tokenizer_class': 'PreTrainedTokenizerFast', 'clean_up_tokenization_spaces': False}
  (folder / 'tokenizer_config.json').write_text(json.dumps(config | more), 'utf-8')
  return folder
