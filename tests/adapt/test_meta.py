"""What stands beside the weights: the same ids and names in transformers, both ways."""

import json

import jax
import numpy as np
import pytest

from bmx.adapt import hub
from bmx.core.errors import InputError
from bmx.data.text import tokenizer
from bmx.models.bert import BERT, Classifier
from bmx.models.gpt import GPT
from tests.adapt.test_hub import abstract, drawn

TEXTS = (
  'Hello World, hello world', 'It is  spaced \n twice', "don't won't CAN'T", 'naïve café — 50%',
  'ＦＵＬＬ width, 中文字 and 🙂', ' leading and trailing ',
)  # fmt: skip


def word_piece(lowercase):
  from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

  inner = Tokenizer(models.WordPiece(unk_token='[UNK]'))
  inner.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=False)
  inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  special = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
  inner.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=90, special_tokens=special))
  inner.post_processor = processors.BertProcessing(('[SEP]', 3), ('[CLS]', 2))
  return inner


def unigram():
  from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

  inner = Tokenizer(models.Unigram())
  inner.normalizer = normalizers.NFKC()
  inner.pre_tokenizer = pre_tokenizers.Metaspace()
  special = ['<s>', '<pad>', '</s>', '<unk>']
  trainer = trainers.UnigramTrainer(vocab_size=80, special_tokens=special, unk_token='<unk>')
  inner.train_from_iterator(TEXTS, trainer)
  inner.post_processor = processors.TemplateProcessing(
    single='<s> $A </s>', special_tokens=[('<s>', 0), ('</s>', 2)]
  )
  return inner


def byte_pairs(prefix):
  from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

  inner = Tokenizer(models.BPE())
  inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
  special = ['<|endoftext|>', '<|begin_of_text|>', '<|eot_id|>']
  trainer = trainers.BpeTrainer(
    vocab_size=300, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
  )
  inner.train_from_iterator(TEXTS, trainer)
  if prefix:
    inner.post_processor = processors.TemplateProcessing(
      single='<|begin_of_text|> $A', special_tokens=[('<|begin_of_text|>', 1)]
    )
  return inner


KINDS = {
  'cased word pieces': lambda: word_piece(False),
  'lower word pieces': lambda: word_piece(True),
  'unigram': unigram,
  'byte pairs': lambda: byte_pairs(False),
  'byte pairs that begin a text': lambda: byte_pairs(True),
}
MODELS = {
  'gpt': lambda: GPT(300, 16, width=8, depth=1, heads=2),
  'bert': lambda: BERT(300, 16, width=8, depth=1, heads=2),
  'roberta': lambda: BERT(300, 16, width=8, depth=1, heads=2, types=1, first_position=2),
  'distilbert': lambda: BERT(300, 16, width=8, depth=1, heads=2, types=0, pooler_activation='relu'),
}


def saved(folder, model, **options):
  hub.save(folder, model, drawn(abstract(model)), **options)
  return json.loads((folder / 'config.json').read_text())


@pytest.mark.parametrize('model', MODELS)
@pytest.mark.parametrize('kind', KINDS)
def test_ids_in_transformers(tmp_path, kind, model):
  """An exported tokenizer gives the same ids, whatever the model beside it."""
  transformers = pytest.importorskip('transformers')
  inner = KINDS[kind]()
  saved(tmp_path / 'out', MODELS[model](), tokenizer=inner.to_str())
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / 'out')
  for special in (False, True):
    expected = [inner.encode(text, add_special_tokens=special).ids for text in TEXTS]
    assert [theirs(text, add_special_tokens=special)['input_ids'] for text in TEXTS] == expected
    found = [theirs.decode(ids, skip_special_tokens=True) for ids in expected]
    assert found == [inner.decode(ids) for ids in expected]
  own = tokenizer.Subwords(inner.to_str())
  roles = {r: theirs.convert_ids_to_tokens(i) for r, i in own.special.items()}
  assert {r: getattr(theirs, f'{r}_token') for r in roles} == roles


@pytest.mark.parametrize('name', MODELS)
def test_pairs_in_transformers(tmp_path, name):
  """The tokenizer gives its model all that it reads, and nothing that it does not read."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  model, inner = MODELS[name](), word_piece(False)
  params = drawn(abstract(model))
  hub.save(tmp_path / 'out', model, params, tokenizer=inner.to_str())
  encoded = transformers.AutoTokenizer.from_pretrained(tmp_path / 'out')('Hello', 'World')
  own = inner.encode('Hello', 'World')
  types = own.type_ids if name == 'bert' else None
  assert encoded.get('token_type_ids') == types
  theirs = transformers.AutoModel.from_pretrained(tmp_path / 'out')
  with torch.no_grad():
    expected = theirs(**{k: torch.tensor([x]) for k, x in encoded.items()})[0].numpy()
  if isinstance(model, BERT):
    arguments = (np.array([own.ids]), None, None, types and np.array([types]))
    found = jax.jit(model.apply)({'params': params}, *arguments)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_a_chat_template_goes_along(tmp_path):
  transformers = pytest.importorskip('transformers')
  text = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
  coder = tokenizer.Subwords(byte_pairs(False).to_str(), chat_template=text)
  saved(tmp_path / 'out', MODELS['gpt'](), tokenizer=coder)
  assert tokenizer.load(str(tmp_path / 'out')).chat_template == text
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / 'out')
  talk = [{'role': 'user', 'content': 'Hello'}]
  assert theirs.apply_chat_template(talk, tokenize=False) == '<user>Hello'


def test_what_ends_a_text(tmp_path):
  """config.json and generation_config.json name it, one id or several; transformers stops there."""
  transformers = pytest.importorskip('transformers')
  text = byte_pairs(True).to_str()
  config = saved(tmp_path / 'many', MODELS['gpt'](), tokenizer=text)
  assert (config['bos_token_id'], config['eos_token_id']) == (1, [0, 2])
  found = transformers.GenerationConfig.from_pretrained(tmp_path / 'many')
  assert (found.bos_token_id, found.eos_token_id, found.pad_token_id) == (1, [0, 2], None)
  assert hub.read_ids(tmp_path / 'many') == {'bos': (1,), 'eos': (0, 2), 'pad': ()}
  given = {'bos': 4, 'eos': 5, 'pad': 6}
  saved(tmp_path / 'one', MODELS['gpt'](), tokenizer=text, special=given)
  found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'one').generation_config
  assert (found.bos_token_id, found.eos_token_id, found.pad_token_id) == (4, 5, 6)
  assert hub.read_ids(tmp_path / 'one') == {'bos': (4,), 'eos': (5,), 'pad': (6,)}
  with pytest.raises(InputError, match='expected the names bos, eos, pad'):
    saved(tmp_path / 'bad', MODELS['gpt'](), special={'end': 5})


@pytest.mark.parametrize(('config', 'generation', 'expected'), [
  ({'eos_token_id': 2, 'bos_token_id': 1}, None, {'bos': (1,), 'eos': (2,), 'pad': ()}),
  ({'eos_token_id': 2}, {'eos_token_id': [7, 2, 9], 'pad_token_id': 0},
   {'bos': (), 'eos': (7, 2, 9), 'pad': (0,)}),
  ({'eos_token_id': [3, 4], 'bos_token_id': 1}, {'eos_token_id': None, 'bos_token_id': 8},
   {'bos': (8,), 'eos': (3, 4), 'pad': ()}),
])  # fmt: skip
def test_ids_of_a_folder(tmp_path, config, generation, expected):
  (tmp_path / 'config.json').write_text(json.dumps(config))
  if generation is not None:
    (tmp_path / 'generation_config.json').write_text(json.dumps(generation))
  assert hub.read_ids(tmp_path) == expected


@pytest.mark.parametrize('value', ['2', -1, 2.0, True, [1, '2'], {'id': 2}])
def test_ids_that_are_none(tmp_path, value):
  (tmp_path / 'config.json').write_text(json.dumps({'eos_token_id': value}))
  with pytest.raises(InputError, match='eos_token_id=.*: expected whole numbers from 0'):
    hub.read_ids(tmp_path)


def test_padding_of_roberta_is_where_positions_begin(tmp_path):
  config = saved(tmp_path / 'out', MODELS['roberta'](), special={'pad': 7})
  assert config['pad_token_id'] == 1


def test_class_names(tmp_path):
  transformers = pytest.importorskip('transformers')
  names = ('neutral', 'bad', 'good')
  model = Classifier(MODELS['bert'](), num_outputs=3)
  saved(tmp_path / 'out', model, labels=names)
  config = transformers.AutoConfig.from_pretrained(tmp_path / 'out')
  assert config.id2label == dict(enumerate(names))
  assert config.label2id == {name: i for i, name in enumerate(names)}
  assert hub.labels(tmp_path / 'out') == names
  for wrong in (names[:2], ('bad', 'bad', 'good')):
    with pytest.raises(InputError, match='expected 3 different names'):
      saved(tmp_path / 'wrong', model, labels=wrong)


def test_class_numbers_out_of_order(tmp_path):
  config = {'architectures': ['BertForSequenceClassification'], 'id2label': {'1': 'b', '0': 'a'}}
  (tmp_path / 'config.json').write_text(json.dumps(config))
  assert hub.labels(tmp_path) == ('a', 'b')
  (tmp_path / 'config.json').write_text(json.dumps(config | {'id2label': {'0': 'a', '2': 'b'}}))
  with pytest.raises(InputError, match='expected a name for each of 0, 1, 2'):
    hub.labels(tmp_path)
