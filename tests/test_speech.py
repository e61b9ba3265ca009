"""Speech of one's own from end to end: training on a folder, predictions of folders, bad files."""

import json
import shutil

import jax
import numpy as np
import pytest

import bmx
from bmx.core.errors import InputError
from bmx.data.audio import recordings as recordings_module
from bmx.data.audio.augment import SpeechAugment
from bmx.data.audio.speech import speech
from bmx.data.audio.utterances import FeatureData
from tests.data.sounds import RATE, keypad, save, tone
from tests.test_bad_input import call, message_of

pytest.importorskip('soundfile', reason='the extra `audio` is not installed')
TEXTS = ['one two', 'two', 'one', 'nine one', 'two nine', 'nine', 'one one', 'two two', 'nine nine',
         'two one', 'one nine', 'nine two']  # fmt: skip
SMALL = {'rate': RATE, 'mels': 20, 'units': 'words'}
WORDS = [
  'epochs=0', 'steps=40', 'batch_size=8', 'data.rate=8000', 'data.mels=20', 'data.units=words',
  'data.holdout=0.2', 'data.augment.band_masks=0', 'data.augment.frame_masks=0',
  'task.model.encoder.width=32', 'task.model.encoder.depth=1', 'task.model.encoder.heads=2',
  'task.model.encoder.dropout=0', 'schedule.peak=0.01', 'schedule.warmup=4', 'mesh.data=1',
]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
  keypad(tmp_path / 'calls', TEXTS)
  return tmp_path / 'calls'


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """-> run directory, summary."""
  root = tmp_path_factory.mktemp('speech')
  keypad(root / 'calls', TEXTS * 3)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, 'devices', lambda *_: jax.local_devices()[:1])
    config, name = bmx.load('speech', [*WORDS, f'data.path={root / "calls"}'])
    x = bmx.build(config, name, jax.devices())
    assert (x.data.size, x.evals['valid'].data.size) == (29, 7)
    summary = bmx.train(x, root / 'run')
  shutil.rmtree(root / 'calls')  # predictions need no training file
  return root / 'run', summary


def test_a_run_keeps_its_units_and_features(run):
  workdir, summary = run
  kept = json.loads((workdir / 'data.json').read_text())['state']
  assert kept['class_names'] == ['<blank>', 'nine', 'one', 'two']
  assert kept['audio']['log_mel']['rate'] == 8000
  assert {'eval/valid/wer', 'eval/valid/cer', 'eval/valid/loss'} <= set(summary['metrics'])


def test_predictions_of_a_folder(run, tmp_path, capsys, monkeypatch):
  """File and text; files that cannot be read are listed, left out and counted."""
  monkeypatch.setattr(jax, 'devices', lambda *_: jax.local_devices()[:1])
  workdir, _ = run
  keypad(tmp_path / 'new', TEXTS[:2])
  (tmp_path / 'new/transcripts.csv').unlink()
  both = np.stack([tone(rate=16000), tone(rate=16000)], 1)
  save(tmp_path / 'new/deep/stereo.flac', both, 16000)
  save(tmp_path / 'new/silent.wav', tone(level=0))
  save(tmp_path / 'new/long.wav', tone(9.0))
  (tmp_path / 'new/broken.wav').write_bytes((tmp_path / 'new/001.wav').read_bytes()[:999])
  (tmp_path / 'new/notes.txt').write_text('no audio')
  arguments = ['--mode=predict', f'--workdir={workdir}']
  output = tmp_path / 'a.jsonl'
  assert call([*arguments, f'--input={tmp_path / "new"}', f'--output={output}']) == 2
  said = capsys.readouterr()
  log = said.out + said.err
  for line in (
    'broken.wav cannot be read as audio (999 bytes of', 'silent.wav is silent (largest sample 0',
    'long.wav lasts 9.00 s: expected at most', '1 of 3 files resampled from 16000 to 8000 Hz',
    '1 of 3 files have several channels: mixed down', 'end otherwise: 1 files, notes.txt',
    '3 of 6 files could not be read: exit code 2',
  ):  # fmt: skip
    assert line in log, line
  rows = [json.loads(line) for line in output.read_text().splitlines()]
  assert [list(row) for row in rows] == [['row', 'file', 'text']] * 3
  assert [row['file'] for row in rows] == ['000.wav', '001.wav', 'deep/stereo.flac']
  assert all(set(row['text'].split()) <= {'nine', 'one', 'two'} for row in rows)
  one = tmp_path / 'b.jsonl'
  file = tmp_path / 'new/001.wav'
  words = ['--config.task.num_beams=4', "--config.task.words=('one','two')"]
  assert call([*arguments, *words, f'--input={file}', f'--output={one}']) == 0
  assert set(json.loads(one.read_text())['text'].split()) <= {'one', 'two'}
  capsys.readouterr()
  assert call([*arguments, f'--input={tmp_path / "new/silent.wav"}']) == 2
  assert 'none of 1 files can be read as audio' in message_of(capsys.readouterr().err)


def test_tables_of_transcripts(folder, tmp_path):
  """CSV, TSV and JSON lines, in the folder or named; other columns."""
  data = speech(str(folder), **SMALL, train=False)
  rows = data.rows(np.arange(12), np.arange(12))
  assert rows['transcript'][0].tolist() == [2, 3] and rows['transcript_length'].max() == 2
  table = folder / 'transcripts.csv'
  lines = [line.split(',') for line in table.read_text().splitlines()[1:]]
  table.unlink()
  (folder / 'transcripts.tsv').write_text('\n'.join(['file\ttext', *map('\t'.join, lines)]))
  (folder / 'other.jsonl').write_text(
    '\n'.join(json.dumps({'wav': f, 'said': t.upper()}) for f, t in lines)
  )
  for path, words in ((folder, {}), (folder / 'other.jsonl', {'file': 'wav', 'text': 'said'})):
    same = speech(str(path), **SMALL, **words, train=False)
    np.testing.assert_array_equal(same.rows(np.arange(12), np.arange(12))['features'],
                                  rows['features'])  # fmt: skip
    np.testing.assert_array_equal(same.arrays['transcript'], data.arrays['transcript'])
  assert data.state() == same.state() and data.metadata['units'] == ['words', True]


def test_large_sets_are_computed_as_they_are_needed(folder, monkeypatch):
  """Waves that do not fit into memory are decoded again: the same features."""
  words = {**SMALL, 'augment': SpeechAugment(), 'seed': 3}
  held = speech(str(folder), **words)
  monkeypatch.setattr(recordings_module, 'HELD_BYTES', 30_000)
  read = speech(str(folder), **words)
  assert isinstance(read, FeatureData) and len(read.source.waves._held) < 12
  order, positions = np.array([5, 0, 5]), np.array([4, 5, 6])
  for name, array in held.rows(order, positions).items():
    np.testing.assert_array_equal(read.rows(order, positions)[name], array)
  rows = held.rows(order, positions)
  assert (rows['features'][0] != rows['features'][2]).any(), 'augmented by position'
  assert held.digest() == read.digest()


def test_a_run_reads_other_files_by_its_own_units(folder, tmp_path):
  state = speech(str(folder), **SMALL, seconds=2.0).state()
  keypad(tmp_path / 'more', ['two', 'one two'])
  data = speech(str(tmp_path / 'more'), mels=99, fitted=state, train=False)
  assert data.arrays['transcript'].tolist() == [[3, 0], [2, 3]]
  assert data.spec['features'].shape[1] == 20
  keypad(tmp_path / 'other', ['two', 'five'])
  with pytest.raises(InputError, match="001.wav: the transcript has 'five': expected words of the"):
    speech(str(tmp_path / 'other'), fitted=state, train=False)


def test_what_does_not_fit_is_named(folder, tmp_path):
  """One line each, from the first file that cannot be used."""
  table = folder / 'transcripts.csv'
  lines = table.read_text()
  empty = tmp_path / 'empty'
  empty.mkdir()
  cases = [
    ('', {}, 'data.path: expected a folder of audio with transcripts.csv'),
    (empty, {}, r'empty: expected a table of transcripts in it, transcripts\.csv with the columns'),
    (tmp_path / 'none.csv', {}, 'no file .*none.csv'),
    (folder, {'text': 'txt'}, r"record 1: expected the transcript in 'txt'; did you mean 'text'"),
    (folder, {'file': 'wav'}, "record 1: expected the path of a file of audio in 'wav'"),
    (folder, {'units': 'letters'}, "units='letters': expected"),
    (folder, {'unreadable': 'drop'}, "unreadable='drop': expected one of refuse, skip"),
    (folder, {'seconds': 0.2}, r'wav lasts .* s: expected at most 0\.20 s; cut it, or train'),
    (folder, {'split': 'test'}, "split='test': expected one of all, train, valid"),
  ]
  for path, words, message in cases:
    with pytest.raises(InputError, match=message):
      speech(str(path) if path else '', **{**SMALL, **words})
  table.write_text(lines + 'gone.wav,one\n')
  with pytest.raises(InputError, match='gone.wav cannot be read .No such file'):
    speech(str(folder), **SMALL)
  assert speech(str(folder), **SMALL, unreadable='skip').metadata['unreadable'] == 1
  save(folder / 'empty.wav', tone(0))
  table.write_text(lines + 'empty.wav,one\n')
  with pytest.raises(InputError, match='empty.wav is empty: expected at least one sample'):
    speech(str(folder), **SMALL)


def test_audio_needs_its_library(folder, monkeypatch):
  monkeypatch.setattr('bmx.data.audio.waves.importlib.util.find_spec', lambda _: None)
  with pytest.raises(InputError, match=r"pip install 'bmx-jax\[audio\]'"):
    speech(str(folder), **SMALL)


def test_shapes_are_known_without_reading():
  data = speech(read=False, seconds=2.0, **SMALL)
  assert data.spec['features'].shape == (201, 20)
