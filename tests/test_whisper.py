"""A Whisper of others from end to end: transcripts of files, fine-tuning, export, bad files."""

import json

import jax
import numpy as np
import pytest
import tokenizers

import bmx
from bmx.adapt import preprocessor
from bmx.core import errors
from bmx.core.errors import InputError
from bmx.data.audio.speech import speech
from bmx.data.text.tokenizer import load
from bmx.main import main
from bmx.modes import pretrained
from tests.conftest import own_logging
from tests.data.sounds import keypad, save, tone

pytest.importorskip('soundfile', reason='the extra `audio` is not installed')
torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
RATE, WORDS = 16000, ('one', 'two', 'nine')
PREFIX = ('<|startoftranscript|>', '<|notimestamps|>')


def tokenizer(folder):
  """Writes a tokenizer of three words and what Whisper's puts around a text."""
  names = ['<|endoftext|>', *PREFIX, *WORDS]
  inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(names)}))
  inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  inner.add_special_tokens(names[:3])
  inner.post_processor = tokenizers.processors.TemplateProcessing(
    single=f'{PREFIX[0]} {PREFIX[1]} $A <|endoftext|>',
    special_tokens=[(name, i) for i, name in enumerate(names[:3])],
  )
  inner.save(str(folder / 'tokenizer.json'))
  (folder / 'tokenizer_config.json').write_text(json.dumps({'eos_token': '<|endoftext|>'}))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A small Whisper that reads 30 s, with random weights and the files of a published one."""
  folder = tmp_path_factory.mktemp('pretrained') / 'whisper'
  torch.manual_seed(0)
  config = transformers.WhisperConfig(
    vocab_size=6, num_mel_bins=20, d_model=8, encoder_layers=1, decoder_layers=1,
    encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=8, decoder_ffn_dim=8,
    max_target_positions=16, pad_token_id=0, bos_token_id=0, eos_token_id=0,
    decoder_start_token_id=1, begin_suppress_tokens=[0],
  )  # fmt: skip
  model = transformers.WhisperForConditionalGeneration(config)
  with torch.no_grad():
    for name, value in model.named_parameters():
      if name != 'model.encoder.embed_positions.weight':
        value.add_(0.5 * torch.randn_like(value))
  model.generation_config.forced_decoder_ids = [[1, 2]]
  model.generation_config._from_model_config = False  # else transformers reads config.json alone
  model.save_pretrained(folder)
  transformers.WhisperFeatureExtractor(feature_size=20).save_pretrained(folder)
  tokenizer(folder)
  return folder


@pytest.fixture(scope='module')
def calls(tmp_path_factory):
  """Recordings with transcripts: stereo, and of another rate, among them."""
  folder = tmp_path_factory.mktemp('recordings') / 'calls'
  keypad(folder, ['one two', 'nine', 'two', 'one one', 'nine two', 'two one'], rate=RATE)
  return folder


def predicted(*words):
  with own_logging():
    return main(['--mode=predict', *map(str, words)])


def test_transcripts_of_a_folder_are_those_of_transformers(folder, tmp_path):
  waves = {'a.wav': tone(0.4, RATE), 'b.wav': tone(1.0, RATE, 900.0), 'c.wav': tone(0.7, RATE, 200)}
  for name, wave in waves.items():
    save(tmp_path / 'new' / name, wave, RATE)
  save(tmp_path / 'new/silent.wav', np.zeros(800), RATE)
  out = tmp_path / 'out.jsonl'
  code = predicted(f'--workdir={folder}', f'--input={tmp_path / "new"}', f'--output={out}',
                   '--config.batch_size=8')  # fmt: skip
  assert code == errors.BAD_INPUT  # as one file was left out
  lines = [json.loads(line) for line in out.read_text().splitlines()]
  model = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
  extract = transformers.WhisperFeatureExtractor.from_pretrained(folder)
  given = extract([wave.astype(np.float32) for wave in waves.values()], sampling_rate=RATE,
                  return_tensors='pt').input_features  # fmt: skip
  ids = model.generate(given, max_new_tokens=8, do_sample=False)
  expected = [load(str(folder)).decode(row) for row in ids.numpy()]
  assert [(line['file'], line['prediction']) for line in lines] == list(
    zip(waves, expected, strict=True)
  )
  assert any(expected)
  assert not (folder / 'predictions').exists() and not (folder / 'logs').exists()


def test_a_run_starts_from_the_folder_and_is_written_as_one(folder, calls, tmp_path):
  """Trained for a step on 30 s of each recording, then exported with tokenizer and features."""
  config, name = bmx.load('fsdd_attention:finetune', [
    f'init.path={folder}', f'data.path={calls}', 'data.mels=20', 'length=8',
    'epochs=0', 'steps=1', 'schedule.warmup=0',
  ])  # fmt: skip
  x = bmx.build(config, name, jax.devices())
  assert x.task.model.begin == (1, 2)
  assert not preprocessor.check(str(folder), False, x.data.metadata, x.data.spec)
  rows = x.data.rows(np.arange(1), np.arange(1))
  assert rows['features'].shape == (1, 3000, 20) and rows['num_frames'][0] == 3000
  assert rows['tokens'][0, :2].tolist() == [1, 2] and rows['targets'][0, 0] == 2
  bmx.train(x, tmp_path / 'run')
  with own_logging():
    done = main(['--mode=merge', f'--workdir={tmp_path / "run"}', f'--output={tmp_path / "out"}'])
  assert done == 0
  for name in ('preprocessor_config.json', 'tokenizer.json'):
    assert json.loads((tmp_path / 'out' / name).read_text()) == json.loads(
      (folder / name).read_text()
    )
  read = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path / 'out')
  assert read.generation_config.eos_token_id == 0
  extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / 'out')
  assert (extractor.feature_size, extractor.nb_max_frames) == (20, 3000)
  own = transformers.AutoTokenizer.from_pretrained(tmp_path / 'out')
  assert own('one two').input_ids == [1, 2, 3, 4, 0]
  again, first = (pretrained.data_of(str(f)) for f in (tmp_path / 'out', folder))
  assert (again.spec, again.state) == (first.spec, first.state)


def test_other_features_than_the_folders_are_named(folder, calls):
  words = [
    f'init.path={folder}', f'data.path={calls}', 'data.mels=20', 'length=8', 'schedule.warmup=0',
    'data.fill=False', 'data.kind=mel', 'data.seconds=20.0',
  ]  # fmt: skip
  config, name = bmx.load('fsdd_attention:finetune', words)
  x = bmx.build(config, name, jax.devices())
  lines = preprocessor.check(str(folder), False, x.data.metadata, x.data.spec)
  assert lines[0] == 'kind=whisper there, mel in the data'
  assert lines[-1] == 'seconds=30.0 there, other in the data'


def changed(folder, tmp_path, name, **values):
  new = tmp_path / 'changed'
  new.mkdir()
  for file in folder.iterdir():
    (new / file.name).write_bytes(file.read_bytes())
  given = json.loads((folder / name).read_text()) | values
  (new / name).write_text(json.dumps(given))
  return str(new)


@pytest.mark.parametrize(('key', 'value', 'message'), [
  ('feature_extractor_type', 'ASTFeatureExtractor', "type='ASTFeatureExtractor': expected Whisper"),
  ('dither', 0.1, 'dither=0.1: supported is 0'),
  ('do_normalize', True, 'do_normalize=True: supported is False'),
  ('chunk_length', 20, 'chunk_length=20: supported is 30'),
])  # fmt: skip
def test_features_that_cannot_be_computed(folder, tmp_path, key, value, message):
  new = changed(folder, tmp_path, 'preprocessor_config.json', **{key: value})
  with pytest.raises(InputError, match=message):
    pretrained.data_of(new)


def test_commands_that_name_no_whisper(folder, tmp_path, capsys):
  other = changed(folder, tmp_path, 'config.json', model_type='bart')
  assert predicted(f'--workdir={other}', '--input=x') == errors.BAD_INPUT
  (tmp_path / 'changed/preprocessor_config.json').unlink()
  with pytest.raises(InputError, match='expected preprocessor_config.json or processor_config'):
    pretrained.data_of(other)
  capsys.readouterr()
  words = [f'--config.init.path={folder}', '--config.length=8', '--prompt=hello']
  code = main(['--mode=generate', '--config=fsdd_attention:finetune', *words])
  assert code == errors.BAD_INPUT
  assert 'reads features, not text' in capsys.readouterr().err


@pytest.mark.parametrize(('words', 'message'), [
  ({'length': 3}, r'\.wav: the transcript has 4 tokens, begin and end included: expected at most'),
  ({'length': 8, 'tokenizer': None}, 'data.length=8: expected a tokenizer of the texts'),
  ({'length': 8, 'fill': True}, 'fill=True: expected the length that waves are filled up to'),
])  # fmt: skip
def test_bad_words(folder, calls, words, message):
  given = {'tokenizer': load(str(folder)), 'rate': RATE, 'mels': 20} | words
  with pytest.raises(InputError, match=message):
    speech(str(calls), **given)


def test_a_transcript_that_is_empty_or_unknown(folder, tmp_path):
  save(tmp_path / 'a.wav', tone(0.2, RATE), RATE)
  for text, message in (('', 'the transcript is empty'), ('one three', "'one three': the token")):
    (tmp_path / 'transcripts.csv').write_text(f'file,text\na.wav,{text}\n')
    with pytest.raises(InputError, match=message):
      speech(str(tmp_path), tokenizer=load(str(folder)), length=8, rate=RATE, mels=20)
