"""Folders of Marian, BART and T5: the numbers and texts of transformers, both ways."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file

from bmx import config as recipes
from bmx import experiment
from bmx.adapt import export, hub
from bmx.core.errors import InputError
from bmx.core.tree import nested
from bmx.models.seq2seq import Seq2Seq
from bmx.parallel import Layout, make_mesh
from bmx.serve.beam import BeamSearch
from bmx.serve.decode import decoder
from bmx.serve.sources import padded_sources
from tests.conftest import ROOT
from tests.models.weights import drawn, jit, shapes

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

V = 53
BART = {
  'vocab_size': V, 'd_model': 16, 'encoder_layers': 1, 'decoder_layers': 2,
  'encoder_attention_heads': 2, 'decoder_attention_heads': 4, 'encoder_ffn_dim': 24,
  'decoder_ffn_dim': 32, 'max_position_embeddings': 24, 'init_std': 0.6, 'dropout': 0.0,
}  # fmt: skip
T5 = {
  'vocab_size': V, 'd_model': 16, 'd_kv': 6, 'd_ff': 24, 'num_layers': 2, 'num_decoder_layers': 2,
  'num_heads': 3, 'relative_attention_num_buckets': 8, 'relative_attention_max_distance': 6,
  'decoder_start_token_id': 0, 'initializer_factor': 3.0, 'dropout_rate': 0.0,
}  # fmt: skip
MARIAN = BART | {
  'pad_token_id': V - 1, 'eos_token_id': 0, 'decoder_start_token_id': V - 1,
  'scale_embedding': True, 'activation_function': 'swish', 'bad_words_ids': [[V - 1]],
}  # fmt: skip
CASES = {
  'marian': ('MarianMTModel', MARIAN),
  'bart': ('BartForConditionalGeneration', BART),
  't5': ('T5ForConditionalGeneration', T5),
  't5 gated': ('T5ForConditionalGeneration', T5 | {'feed_forward_proj': 'gated-gelu'}),
}
ONE = Layout(make_mesh({'data': 1}, jax.devices()[:1]))


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """Returns a function: case -> (folder, transformers' model), made once."""

  @functools.cache
  def get(case):
    name, options = CASES[case]
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    bad = options.get('bad_words_ids')
    config = kind.config_class(**{k: v for k, v in options.items() if k != 'bad_words_ids'})
    model = kind(config).eval()
    with torch.no_grad():
      for key, value in model.state_dict().items():
        if key == 'final_logits_bias' or key.endswith('.bias'):
          value.normal_(0, 0.3)
        if 'norm.weight' in key:
          value.normal_(1, 0.2)
    if bad:
      model.generation_config.bad_words_ids = bad
    model.generation_config.forced_eos_token_id = None
    folder = tmp_path_factory.mktemp('written') / case.replace(' ', '_')
    model.save_pretrained(folder)
    return folder, model

  return get


SIZES = (7, 4, 6)  # tokens of the sources


def sources():
  random = np.random.default_rng(0)
  return [random.integers(4, V - 2, n).astype(np.int32) for n in SIZES]


def targets(model):
  ids = np.random.default_rng(1).integers(4, V - 2, (3, 5)).astype(np.int32)
  ids[:, 0] = model.begin[0]
  return ids


@functools.cache
def opened(folder):
  model = recipes.build(hub.part(folder), 'model')
  source = padded_sources(sources())
  params = nested(hub.load(folder, shapes(model, source, targets(model))['params']))
  return model, params


def run(model, params):
  source = padded_sources(sources())
  return jit(lambda p: model.apply({'params': p}, source, targets(model)))(params)


def of_torch(reference, ids, width):
  source = padded_sources(sources())
  with torch.no_grad():
    found = reference(
      input_ids=torch.tensor(source['source'][:, :width]),
      attention_mask=torch.tensor(source['source_ids'][:, :width]),
      decoder_input_ids=torch.tensor(ids),
    )
  return found.logits.numpy()


@pytest.mark.parametrize('case', CASES)
def test_logits_are_those_of_transformers(written, case):
  folder, reference = written(case)
  model, params = opened(folder)
  expected = of_torch(reference, targets(model), max(SIZES))
  assert expected.std() > 0.1
  np.testing.assert_allclose(run(model, params), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('beams', [1, 3])
@pytest.mark.parametrize('case', CASES)
def test_texts_are_those_of_transformers(written, case, beams):
  folder, reference = written(case)
  model, params = opened(folder)
  width, n = max(SIZES), 8
  source = padded_sources(sources())
  given = reference.generate(
    input_ids=torch.tensor(source['source'][:, :width]),
    attention_mask=torch.tensor(source['source_ids'][:, :width]),
    max_new_tokens=n, num_beams=beams, do_sample=False,
  ).numpy()  # fmt: skip
  ends = np.atleast_1d(reference.generation_config.eos_token_id).tolist()
  expected = []
  for row in given[:, 1:].tolist():
    stop = next((i for i, x in enumerate(row) if x in ends), len(row))
    expected.append(row[:stop])
  search = BeamSearch(*decoder(model, params, ONE), ONE, beams, ends, begin=model.begin)
  texts, _ = search(source, n)
  assert texts == expected


@pytest.mark.parametrize('case', CASES)
def test_what_is_written_again_is_the_same(written, case, tmp_path):
  """Tensors bit for bit, and a config that transformers reads as the same model."""
  folder, reference = written(case)
  model, params = opened(folder)
  export.save(tmp_path / 'again', model, params)
  known, again = (load_file(f / 'model.safetensors') for f in (folder, tmp_path / 'again'))
  assert known.keys() == again.keys()
  for name, value in known.items():
    np.testing.assert_array_equal(again[name], value, err_msg=name)
  assert hub.part(tmp_path / 'again') == hub.part(folder)
  read = type(reference).from_pretrained(tmp_path / 'again').eval()
  ids = targets(model)
  np.testing.assert_array_equal(of_torch(read, ids, 7), of_torch(reference, ids, 7))


def test_a_model_of_our_own_is_read_by_transformers(tmp_path):
  model = Seq2Seq(
    vocab_size=V, width=16, depth=1, heads=2, positions='relative', norm='rms', bias=False,
    scaled_attention=False, scaled_head=True, eps=1e-6, relative_buckets=8,
  )  # fmt: skip
  source = padded_sources(sources())
  params = drawn(shapes(model, source, targets(model))['params'], scale=0.5)
  export.save(tmp_path / 'own', model, params, special={'eos': 1, 'pad': 0})
  read = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / 'own').eval()
  expected = of_torch(read, targets(model), max(SIZES))
  np.testing.assert_allclose(run(model, params), expected, atol=1e-4, rtol=1e-4)


def word_level(folder):
  """Writes a tokenizer of few words, which adds </s> to a text."""
  words = ['<pad>', '</s>', '<unk>', *'abcdefghij']
  inner = tokenizers.Tokenizer(
    tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, '<unk>')
  )
  inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  inner.add_special_tokens(words[:3])
  inner.post_processor = tokenizers.processors.TemplateProcessing(
    single='$A </s>', special_tokens=[('</s>', 1)]
  )
  inner.save(str(folder / 'tokenizer.json'))
  named = {'pad_token': '<pad>', 'eos_token': '</s>'}
  (folder / 'tokenizer_config.json').write_text(json.dumps(named))


def test_a_run_starts_from_a_folder(written, tmp_path):
  """Sizes, weights, tokenizer and the first id of targets are the folder's."""
  folder = changed(written('t5')[0], tmp_path)
  word_level(folder)
  lines = {'de': 'a b c\nd e', 'en': 'f g\nh i j'}
  for name, text in lines.items():
    (tmp_path / f'x.{name}').write_text(text)
  files = {'path': str(tmp_path / 'x.de'), 'targets': str(tmp_path / 'x.en')}
  words = [f'{part}.{k}={v}' for part in ('data', 'eval.valid', 'eval.test')
           for k, v in files.items()]  # fmt: skip
  config, name = recipes.load(
    str(ROOT / 'configs/multi30k_transformer.py:finetune'),
    [f'init.path={folder}', 'mesh.data=1', 'batch_size=2', *words],
  )
  x = experiment.build(config, name, jax.devices()[:1])
  assert x.task.model.begin == (0,) and x.data.metadata['begin'] == 0
  rows = x.evals['valid'].data.rows(np.arange(2), np.arange(2))
  assert rows['source'][0, :5].tolist() == [3, 4, 5, 1, 0]
  _, params = opened(folder)
  state = x.init()
  for own, given in zip(jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True):
    np.testing.assert_array_equal(own, given)


def changed(folder, tmp_path, **values):
  new = tmp_path / 'changed'
  new.mkdir()
  config = json.loads((folder / 'config.json').read_text()) | values
  (new / 'config.json').write_text(json.dumps(config))
  save_file(load_file(folder / 'model.safetensors'), new / 'model.safetensors')
  return new


REFUSED = [
  ('bart', {'normalize_before': True}, 'normalize_before=True: supported is False'),
  ('bart', {'no_repeat_ngram_size': 3}, 'no_repeat_ngram_size=3: not supported'),
  ('bart', {'decoder_start_token_id': None}, 'decoder_start_token_id=None: expected an id'),
  ('bart', {'activation_function': 'mish'}, "activation_function='mish': supported are"),
  ('marian', {'share_encoder_decoder_embeddings': False}, 'share_encoder_decoder_embeddings=False'),
  ('marian', {'bad_words_ids': [[1, 2]]}, r'bad_words_ids=\[\[1, 2\]\]: supported are single ids'),
  ('marian', {'decoder_vocab_size': 99}, 'decoder_vocab_size=99: supported is vocab_size'),
  ('t5', {'feed_forward_proj': 'gated-mish'}, "feed_forward_proj='gated-mish': expected relu"),
  ('t5', {'num_layers': 'two'}, "num_layers='two': expected int, at least 1"),
]


@pytest.mark.parametrize(('case', 'values', 'message'), REFUSED)
def test_what_cannot_be_reproduced(written, tmp_path, case, values, message):
  folder, _ = written(case)
  with pytest.raises(InputError, match=message):
    hub.part(changed(folder, tmp_path, **values))


def test_models_that_transformers_has_not(tmp_path):
  source = padded_sources(sources())
  for options in ({'positions': 'rotary'}, {'positions': 'sinusoidal'}):
    model = Seq2Seq(vocab_size=V, max_seq_len=24, width=16, depth=1, heads=2, **options)
    params = drawn(shapes(model, source, jnp.zeros((3, 5), jnp.int32))['params'])
    with pytest.raises(InputError, match='the model is not a MarianMTModel of transformers'):
      export.save(tmp_path / 'no', model, params)
