"""Whole-word masking of texts with and without spaces: as many tokens as without words."""

import jax
import numpy as np
import pytest

from bmx.data.text.packing import packed
from bmx.data.text.tokenizer import Subwords
from bmx.models.bert import BERT, Pretraining
from bmx.tasks.encoder import MaskedLM
from tests.models.weights import jit

tokenizers = pytest.importorskip('tokenizers')

TEXTS = {
  'English': (
    'Alice was beginning to get very tired of sitting by her sister on the bank, and of having '
    'nothing to do: once or twice she had peeped into the book her sister was reading, but it had '
    'no pictures or conversations in it.'
  ),
  'Chinese': (
    '子曰學而時習之不亦說乎有朋自遠方來不亦樂乎人不知而不慍不亦君子乎有子曰其為人也孝弟而好犯上者鮮矣'
    '不好犯上而好作亂者未之有也君子務本本立而道生孝弟也者其為仁之本與子曰巧言令色鮮矣仁'
  ),
  'Japanese': (
    '吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。何でも薄暗いじめじめした所でニャー'
    'ニャー泣いていた事だけは記憶している。吾輩はここで始めて人間というものを見た。'
  ),
  'one word and many': 'a b c d e f g h ' + 'ACGTTGCAACGT' * 8 + ' i j k l m n',
  'letters': 'ab' * 200,
}
SPLITS = {
  'metaspace': tokenizers.pre_tokenizers.Metaspace(),
  'spaces': tokenizers.pre_tokenizers.WhitespaceSplit(),
  'none': tokenizers.pre_tokenizers.Sequence([]),
}


def tokenizer(text, split):
  """Unigram of single characters and of some pairs of them, with BERT's frame."""
  letters = sorted({'▁', *text.replace(' ', '')})
  pairs = sorted({text[i : i + 2] for i in range(0, len(text), 5) if ' ' not in text[i : i + 2]})
  special = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
  vocab = [(t, 0.0) for t in special] + [(t, -5.0) for t in letters] + [(t, -7.0) for t in pairs]
  inner = tokenizers.Tokenizer(tokenizers.models.Unigram(vocab, unk_id=1))
  inner.pre_tokenizer = SPLITS[split]
  inner.add_special_tokens(special)
  inner.post_processor = tokenizers.processors.TemplateProcessing(
    '[CLS] $A [SEP]', special_tokens=[('[CLS]', 2), ('[SEP]', 3)]
  )
  return Subwords(inner.to_str())


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


@pytest.mark.parametrize('length', [24, 128])
@pytest.mark.parametrize('split', SPLITS)
def test_about_15_percent_is_masked_of_any_text(tmp_path, split, length):
  model = Pretraining(BERT(vocab_size=400, max_seq_len=length, width=8, depth=1, heads=1), False)
  task = MaskedLM(model, 4, (0, 1, 2, 3, 4), whole=True)
  corrupt = jit(task.corrupt)
  for name, text in TEXTS.items():
    (tmp_path / f'{name}.txt').write_text(text, 'utf-8')
    coder = tokenizer(text, split)
    data = packed(length, (str(tmp_path / f'{name}.txt'),), 'all', tokenizer=coder, words=True)
    rows = data.rows(np.resize(np.arange(data.size), 60), np.arange(60))
    real = ~np.isin(rows['tokens'], (0, 1, 2, 3, 4)) & (rows['segment_ids'] > 0)
    new = jax.device_get(corrupt(rows, jax.random.PRNGKey(0)))
    counts, expected = new['weights'].sum(1), np.maximum(1, np.round(0.15 * real.sum(1)))
    assert (counts > 0).all() and (counts <= expected).all(), name
    assert counts.sum() > 0.9 * expected.sum(), name
