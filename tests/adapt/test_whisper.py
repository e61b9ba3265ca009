"""Folders of Whisper: the numbers and transcripts of transformers, both ways."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bmx import config as recipes
from bmx.adapt import export, hub
from bmx.core.errors import InputError
from bmx.core.tree import nested
from bmx.core.types import Noise
from bmx.models.to_text import ToText
from bmx.models.vit import ViT
from bmx.models.whisper import Whisper
from bmx.tasks.seq2seq import Seq2SeqLM
from tests.models.weights import drawn, jit, shapes

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

V, FRAMES, MELS, STEPS = 61, 20, 8, 9
SIZES = {
  'vocab_size': V, 'num_mel_bins': MELS, 'd_model': 16, 'encoder_layers': 1, 'decoder_layers': 2,
  'encoder_attention_heads': 2, 'decoder_attention_heads': 4, 'encoder_ffn_dim': 24,
  'decoder_ffn_dim': 32, 'max_source_positions': FRAMES // 2, 'max_target_positions': 24,
  'pad_token_id': 2, 'bos_token_id': 1, 'eos_token_id': 2, 'decoder_start_token_id': 3,
}  # fmt: skip
LANGUAGES = {'<|en|>': 4, '<|de|>': 5, '<|fr|>': 6}
TASKS = {'transcribe': 7, 'translate': 8}
# As the files of whisper-tiny.en and whisper-tiny have them, and a language that is named.
ENGLISH = {'forced_decoder_ids': [[1, 9]], 'suppress_tokens': [20, 21],
           'begin_suppress_tokens': [22, 2]}  # fmt: skip
SEVERAL = ENGLISH | {
  'forced_decoder_ids': [[1, None], [2, 7]], 'lang_to_id': LANGUAGES, 'task_to_id': TASKS,
  'is_multilingual': True, 'no_timestamps_token_id': 9, 'suppress_tokens': [7, 8, 20],
  'return_timestamps': False,
}  # fmt: skip
GENERATION = {
  'english': ENGLISH,
  'detected': SEVERAL,
  'named': SEVERAL | {'language': 'de', 'task': 'translate'},
}
BEGIN = {'english': (3, 9), 'detected': (3, 7, 9), 'named': (3, 5, 8, 9)}


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """Returns a function: case -> (folder, transformers' model), made once."""

  @functools.cache
  def get(case):
    torch.manual_seed(1)
    config = transformers.WhisperConfig(**SIZES, attn_implementation='eager')
    model = transformers.WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
      for name, value in model.named_parameters():
        if name != 'model.encoder.embed_positions.weight':
          value.add_(0.3 * torch.randn_like(value))
    for key, value in GENERATION[case].items():
      setattr(model.generation_config, key, value)
    folder = tmp_path_factory.mktemp('written') / case
    model.save_pretrained(folder)
    return folder, model

  return get


def features():
  return np.random.default_rng(0).normal(size=(3, FRAMES, MELS)).astype(np.float32)


def tokens():
  return np.random.default_rng(1).integers(3, V, (3, 7)).astype(np.int32)


@functools.cache
def opened(folder):
  model = recipes.build(hub.part(folder), 'model')
  abstract = shapes(model, {'features': features()}, tokens())['params']
  return model, nested(hub.load(folder, abstract))


def of_torch(reference):
  with torch.no_grad():
    given = torch.tensor(features()).transpose(1, 2)
    return reference(input_features=given, decoder_input_ids=torch.tensor(tokens())).logits.numpy()


def texts_of(reference):
  given = torch.tensor(features()).transpose(1, 2)
  found = reference.generate(input_features=given, max_new_tokens=STEPS, do_sample=False)
  # With more than two ids before a transcript, transformers writes one token more than it may.
  return [[i for i in row if i != 2][:STEPS] for row in found.tolist()]


def texts(model, params):
  task = Seq2SeqLM(model, num_beams=1, max_new_tokens=STEPS, metadata={'ends': (2,)})
  noise = Noise(jax.random.key(0), jnp.int32(0))
  batch = {'features': features(), 'num_frames': np.full(3, FRAMES, np.int32)}
  found = jit(lambda p: task.predict({'params': p}, batch, noise))(params)['prediction']
  return [row[row >= 0].tolist() for row in np.asarray(found)]


def test_logits_are_those_of_transformers(written):
  folder, reference = written('english')
  model, params = opened(folder)
  expected = of_torch(reference)
  assert expected.std() > 0.1
  found = jit(lambda p: model.apply({'params': p}, {'features': features()}, tokens()))(params)
  np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize('case', GENERATION)
def test_greedy_transcripts_are_those_of_transformers(written, case):
  """With the ids before a transcript, the language found, and ids that are never written."""
  folder, reference = written(case)
  model, params = opened(folder)
  assert model.begin == BEGIN[case] and bool(model.languages) == (case == 'detected')
  assert texts(model, params) == (expected := texts_of(reference))
  assert len({tuple(row) for row in expected}) > 1
  assert not {20, 22} & {i for row in expected for i in (*row[:1], *row[-2:])}


@pytest.mark.parametrize('case', ['english', 'detected'])
def test_what_is_written_again_is_the_same(written, case, tmp_path):
  """Tensors bit for bit, and a folder from which transformers writes the same transcripts."""
  folder, reference = written(case)
  model, params = opened(folder)
  export.save(tmp_path / 'again', model, params, special={'bos': 1, 'eos': 2, 'pad': 2})
  known, again = (load_file(f / 'model.safetensors') for f in (folder, tmp_path / 'again'))
  assert known.keys() == again.keys()
  for name, value in known.items():
    np.testing.assert_array_equal(again[name], value, err_msg=name)
  assert hub.part(tmp_path / 'again') == hub.part(folder)
  read = transformers.WhisperForConditionalGeneration.from_pretrained(
    tmp_path / 'again', attn_implementation='eager'
  ).eval()
  np.testing.assert_array_equal(of_torch(read), of_torch(reference))
  assert texts_of(read) == texts_of(reference)


def changed(folder, tmp_path, config=(), generation=()):
  new = tmp_path / 'changed'
  new.mkdir()
  for name, values in (('config.json', config), ('generation_config.json', generation)):
    given = json.loads((folder / name).read_text()) | dict(values)
    (new / name).write_text(json.dumps(given))
  save_file(load_file(folder / 'model.safetensors'), new / 'model.safetensors')
  return new


REFUSED = [
  ({'scale_embedding': True}, {}, 'scale_embedding=True: supported is False'),
  ({'apply_spec_augment': True}, {}, 'apply_spec_augment=True: supported is False'),
  ({'activation_function': 'mish'}, {}, "activation_function='mish': supported are"),
  ({'encoder_layers': 'two'}, {}, "encoder_layers='two': expected int, at least 1"),
  ({}, {'return_timestamps': True}, 'return_timestamps=True: supported are texts without times'),
  ({}, {'no_repeat_ngram_size': 3}, 'no_repeat_ngram_size=3: not supported'),
  ({}, {'decoder_start_token_id': None}, 'decoder_start_token_id=None: expected an id'),
  ({}, {'forced_decoder_ids': [[2, 9]]}, r'forced_decoder_ids=\[\[2, 9\]\]: expected \[\[1, ID\]'),
  ({}, {'language': 'it'}, "language='it': expected one of <|.*<|en|>"),
  ({}, {'task': 'sing'}, "task='sing': expected one of transcribe, translate"),
  ({}, {'lang_to_id': None}, 'forced_decoder_ids: the language is open'),
  ({}, {'suppress_tokens': [-1]}, r'suppress_tokens=\[-1\]: expected ids'),
]


@pytest.mark.parametrize(('config', 'generation', 'message'), REFUSED)
def test_what_cannot_be_reproduced(written, tmp_path, config, generation, message):
  folder, _ = written('detected')
  with pytest.raises(InputError, match=message.replace('|', r'\|')):
    hub.part(changed(folder, tmp_path, config, generation))


def test_tensors_of_another_size_are_named(written, tmp_path):
  folder, _ = written('english')
  model = recipes.build(hub.part(folder), 'model')
  abstract = shapes(model, {'features': features()[..., :5]}, tokens())['params']
  with pytest.raises(InputError, match=r'conv1.weight: has \[16, 8, 3\], expected \[16, 5, 3\]'):
    hub.load(folder, abstract)


def test_a_model_of_our_own_is_read_by_transformers(tmp_path):
  model = Whisper(
    vocab_size=V, max_seq_len=24, max_source_len=FRAMES // 2, width=16, depth=1, heads=2, begin=(3,)
  )
  params = drawn(shapes(model, {'features': features()}, tokens())['params'], scale=0.3)
  export.save(tmp_path / 'own', model, params, special={'eos': 2, 'pad': 2})
  read = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path / 'own').eval()
  found = jit(lambda p: model.apply({'params': p}, {'features': features()}, tokens()))(params)
  np.testing.assert_allclose(found, of_torch(read), atol=1e-4)


def test_a_model_that_transformers_has_not(tmp_path):
  model = ToText(encoder=ViT(0), vocab_size=V)
  with pytest.raises(InputError, match='model=ToText: expected one of GPT2LMHeadModel'):
    export.save(tmp_path / 'no', model, {})


def test_audio_longer_than_the_table_of_positions(written):
  model, params = opened(written('english')[0])
  long = np.zeros((1, FRAMES + 2, MELS), np.float32)
  with pytest.raises(InputError, match='max_source_len=10: expected at least 11'):
    model.apply({'params': params}, {'features': long}, tokens()[:1])
