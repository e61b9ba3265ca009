"""Audio: decoding, resampling, features and augmentation."""

import concurrent.futures
import hashlib
import io
import multiprocessing

import numpy as np
import pytest

from bmx.core.errors import InputError
from bmx.core.streams import Draws
from bmx.data.audio.augment import SpeechAugment
from bmx.data.audio.digits import NAMES, RATE, digits, sequences
from bmx.data.audio.features import LogMel, mel_filters, whisper_features
from bmx.data.audio.waves import decode, faster, resampled
from tests.data.sounds import save, tone

SMALL = {'source': 'tones', 'words': (1, 3), 'seconds': 1.2, 'mels': 20}


@pytest.fixture(scope='module')
def wave():
  """A second of noise that grows and decays, with a silent end."""
  random = np.random.default_rng(0)
  made = random.normal(0, 0.1, 8000) * np.hanning(8000)
  made[7000:] = 0
  return made


def test_log_mel_is_its_definition(wave):
  """Each frame by a plain Fourier sum, each band by its triangle."""
  log_mel = LogMel(RATE, 20, normalize=False)
  got = log_mel(wave)
  n, size = log_mel.samples, log_mel.size
  assert (n, size, log_mel.stride) == (200, 256, 80)
  assert got.shape == (log_mel.frames(len(wave)), 20) == (101, 20)
  k = np.arange(size // 2 + 1)
  fourier = np.exp(-2j * np.pi * np.outer(k, np.arange(n)) / size)
  hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n)
  longer = np.pad(wave, n)
  for t in (0, 13, 60, 100):
    frame = longer[n + t * 80 - n // 2 :][:n] * hann
    power = np.abs(fourier @ frame) ** 2
    expected = np.log(np.maximum(mel_filters(RATE, size, 20, 0.0, 4000.0) @ power, 1e-10))
    np.testing.assert_allclose(got[t], expected, atol=1e-6)
  np.testing.assert_allclose(log_mel(wave.astype(np.float32)), got, atol=2e-3)


def test_normalized_bands_have_mean_0_and_deviation_1(wave):
  got = LogMel(RATE, 20)(wave[:6000])
  np.testing.assert_allclose(got.mean(0), 0, atol=1e-9)
  np.testing.assert_allclose(got.std(0), 1, atol=1e-4)


@pytest.mark.parametrize(('rate', 'mels', 'hop'), [(8000, 40, 0.01), (16000, 80, 0.0125)])
def test_log_mel_is_that_of_librosa(wave, rate, mels, hop):
  librosa = pytest.importorskip('librosa', reason='the extra `reference` is not installed')
  log_mel = LogMel(rate, mels, hop=hop, low=20.0, normalize=False)
  expected = librosa.feature.melspectrogram(
    y=wave, sr=rate, n_fft=log_mel.size, win_length=log_mel.samples, hop_length=log_mel.stride,
    n_mels=mels, fmin=20.0,
  )  # fmt: skip
  expected = np.log(np.maximum(expected, 1e-10)).T
  np.testing.assert_allclose(log_mel(wave), expected, atol=1e-5)
  own = mel_filters(rate, log_mel.size, mels, 20.0, rate / 2)
  theirs = librosa.filters.mel(sr=rate, n_fft=log_mel.size, n_mels=mels, fmin=20.0)
  np.testing.assert_allclose(own, theirs, atol=1e-8)


@pytest.mark.parametrize('mels', [80, 128])
def test_features_of_whisper(wave, mels):
  transformers = pytest.importorskip('transformers', reason='the extra `reference` is missing')
  extract = transformers.WhisperFeatureExtractor(feature_size=mels)
  expected = extract(wave.astype(np.float32), sampling_rate=16000, return_tensors='np')
  got = whisper_features(wave.astype(np.float32), mels)
  assert got.shape == (3000, mels)
  np.testing.assert_allclose(got, expected.input_features[0].T, atol=1e-5)


@pytest.mark.parametrize(('old', 'new'), [(44100, 16000), (8000, 16000), (16000, 8000)])
def test_a_resampled_sine_is_that_sine(old, new):
  got = resampled(tone(0.5, old).astype(np.float32), old, new)
  expected = tone(0.5, new)
  assert len(got) == len(expected)
  inner = slice(new // 50, -new // 50)
  np.testing.assert_allclose(got[inner], expected[inner], atol=2e-3)


def test_speed_divides_the_length_and_shifts_the_pitch():
  got = faster(tone(1.0).astype(np.float32), 1.1)
  assert len(got) == -(-8000 * 1000 // 1100)
  peak = np.abs(np.fft.rfft(got)).argmax() * RATE / len(got)
  assert peak == pytest.approx(484, abs=2)


def file(wave, rate=RATE, kind='WAV', **words):
  soundfile = pytest.importorskip('soundfile', reason='the extra `audio` is not installed')
  content = io.BytesIO()
  soundfile.write(content, wave, rate, format=kind, **words)
  return content.getvalue()


@pytest.mark.parametrize(('kind', 'subtype', 'atol'), [
  ('WAV', 'PCM_16', 1e-4), ('WAV', 'FLOAT', 1e-7), ('WAV', 'PCM_24', 1e-6), ('WAV', 'ULAW', 0.02),
  ('FLAC', 'PCM_16', 1e-4),
])  # fmt: skip
def test_files_are_decoded(kind, subtype, atol):
  wave = tone()
  got = decode(file(wave, kind=kind, subtype=subtype), 'a', RATE)
  assert got.samples.dtype == np.float32 and (got.rate, got.channels) == (RATE, 1)
  np.testing.assert_allclose(got.samples, wave, atol=atol)


def test_channels_are_mixed_down_and_rates_resampled():
  both = np.stack([tone(rate=16000), tone(rate=16000, hertz=700)], 1)
  got = decode(file(both, 16000), 'a', RATE)
  assert (got.rate, got.channels, len(got.samples)) == (16000, 2, 4000)
  inner = slice(200, -200)
  expected = (tone() + tone(hertz=700)) / 2
  np.testing.assert_allclose(got.samples[inner], expected[inner], atol=2e-3)


BROKEN = {
  'text': (lambda: b'no audio', 'cannot be read as audio .Format not recognised.; remove or'),
  'nothing': (lambda: b'', 'cannot be read as audio'),
  'truncated': (lambda: file(tone())[:3000], 'cannot be read as audio .3000 bytes of 8044.'),
  'truncated flac': (lambda: file(tone(), kind='FLAC')[:900], 'cannot be read as audio'),
  'no samples': (lambda: file(tone(0)), 'x is empty: expected at least one sample'),
  'silent': (lambda: file(tone(level=1e-5), subtype='FLOAT'), r'silent .largest sample 1e-05 of'),
  'opposite channels': (lambda: file(np.stack([tone(), -tone()], 1)), 'x is silent'),
  'not finite': (
    lambda: file(np.array([0.1, np.nan, 0.2]), subtype='FLOAT'), 'nan at sample 1: expected finite'
  ),
}  # fmt: skip


@pytest.mark.parametrize('name', BROKEN)
def test_broken_files_are_named(name):
  make, message = BROKEN[name]
  with pytest.raises(InputError, match=f'^x .*{message}|^{message}'):
    decode(make(), 'x', RATE)


def test_a_stream_of_unknown_length_is_read():
  data = bytearray(file(tone()))
  data[4:8] = b'\xff' * 4  # its writer could not go back
  assert len(decode(bytes(data), 'x', RATE).samples) == 4000


@pytest.mark.parametrize(('words', 'message'), [
  ({'mels': 200}, 'mels=200: band 0 holds no frequency of a window of 0.025 s'),
  ({'hop': 0.1}, r'hop=0\.1: expected .* <= hop <= 0\.025'),
  ({'high': 9000.0}, r'high=9000\.0: expected 0 <= high <= 4000\.0'),
  ({'low': 4000.0}, r'low=4000\.0: expected 0 <= low < 4000\.0'),
  ({'kind': 'mfcc'}, "kind='mfcc': expected 'mel' or 'whisper'"),
])  # fmt: skip
def test_wrong_features_are_named(words, message):
  with pytest.raises(InputError, match=message):
    LogMel(**{'rate': 8000, 'mels': 20, **words})


def test_masks_have_their_sizes():
  """Of 400 examples: every mask is a run of bands or frames, no wider than it may be."""
  augment = SpeechAugment((), 1, 5, 1, 30, 0.25)
  frames = np.full(400, 60)
  frames[0] = 4
  ones = np.ones((400, 80, 16), np.float32)
  got = augment.masked(ones, frames, Draws(3, np.arange(400)))
  assert (ones == 1).all()
  bands = (got[:, -1] == 0).sum(1)  # behind the frames, where only bands are masked
  times = (got == 0).all(2)
  assert np.isin(np.arange(6), bands).all() and bands.max() == 5
  assert times.sum(1).max() == 15 and times.sum(1).min() == 0
  assert not times[:, 60:].any() and not times[0, 1:].sum() > 1
  edges = np.diff(np.pad(times, ((0, 0), (1, 1))).astype(int), axis=1)
  assert (np.abs(edges).sum(1) <= 2).all()
  assert times[:, :60].any(0).all(), 'every frame is masked in one of the examples'
  none = SpeechAugment((), 0, 1, 0, 1).masked(ones, frames, Draws(3, np.arange(400)))
  np.testing.assert_array_equal(none, ones)


def test_speeds_are_drawn_evenly():
  drawn = SpeechAugment().speeds_of(Draws(0, np.arange(3000)))
  values, counts = np.unique(drawn, return_counts=True)
  assert values.tolist() == [0.9, 1.0, 1.1]
  assert (np.abs(counts - 1000) < 120).all()


@pytest.mark.parametrize(('words', 'message'), [
  ({'speeds': (3.0,)}, r'speed=3\.0: expected 0\.5 <= speed <= 2'),
  ({'band_masks': -1}, 'band_masks=-1: expected 0 <= band_masks <= 16'),
  ({'frame_width': 0}, 'frame_width=0: expected a finite number, 1 <= frame_width'),
  ({'frame_share': 2}, 'frame_share=2: expected 0 <= frame_share <= 1'),
])  # fmt: skip
def test_wrong_augmentation_is_named(words, message):
  with pytest.raises(InputError, match=message):
    SpeechAugment(**words)


def digest(data, order):
  rows = data.rows(order, order + 7)
  total = hashlib.sha256()
  for name in sorted(rows):
    total.update(name.encode() + rows[name].tobytes())
  return total.hexdigest()


def composed():
  return sequences(**SMALL, augment=SpeechAugment(), seed=5)


def alone(_):
  return digest(composed(), np.arange(6))


def test_features_depend_on_seed_and_position_alone():
  """The same bytes for any number of threads, another order, and in other processes."""
  data, order = composed(), np.arange(6)
  expected = digest(data, order)
  for threads in (1, 3):
    data.pool = concurrent.futures.ThreadPoolExecutor(threads)
    assert digest(data, order) == expected
  whole = data.rows(order, order + 7)
  for i in (4, 0):
    one = data.rows(order[i : i + 1], order[i : i + 1] + 7)
    assert all((one[k][0] == whole[k][i]).all() for k in one)
  with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context('spawn')) as pool:
    assert set(pool.map(alone, range(2))) == {expected}
  other = sequences(**SMALL, augment=SpeechAugment(), seed=6)
  assert digest(other, order) != expected


def test_composed_sequences_follow_their_number():
  """Training sequences follow positions and the run's seed, those of evaluation their index."""
  train, held = sequences(**SMALL), sequences(**SMALL, count=5, train=False)
  order = np.arange(5)
  a, b = train.rows(order, order), train.rows(order, order + 5)
  assert not np.array_equal(a['features'], b['features'])
  np.testing.assert_array_equal(held.rows(order, order)['features'],
                                held.rows(order, order + 5)['features'])  # fmt: skip
  again = sequences(**SMALL, count=9, seed=4, train=False)
  np.testing.assert_array_equal(again.rows(order, order)['features'],
                                held.rows(order, order)['features'])  # fmt: skip
  valid = sequences(**SMALL, split='valid', count=5, train=False)
  assert not np.array_equal(valid.rows(order, order)['features'],
                            held.rows(order, order)['features'])  # fmt: skip


def test_sequences_are_drawn_evenly():
  source = sequences(**SMALL).source
  drawn = [source.wave(0, i) for i in range(300)]
  lengths = np.bincount([len(ids) for _, ids in drawn], minlength=4)
  assert lengths[0] == 0 and (lengths[1:3] > 70).all() and lengths[3] > 40
  words = np.bincount(np.concatenate([ids for _, ids in drawn]), minlength=11)
  assert words[0] == 0 and (words[1:] > 30).all()
  assert max(len(wave) for wave, _ in drawn) <= 1.2 * RATE


def test_features_behind_the_last_frame_are_0():
  data = sequences(**SMALL)
  rows = data.rows(np.arange(8), np.arange(8))
  for features, frames in zip(rows['features'], rows['num_frames'], strict=True):
    assert not features[frames:].any() and features[frames - 1].any()


def test_single_digits_are_images():
  data = digits('tones', seconds=0.3, mels=20)
  rows = data.rows(np.arange(80), np.arange(80))
  assert rows['image'].shape == (80, 31, 20, 1) and data.metadata['class_names'] == list(NAMES)
  assert np.bincount(rows['label']).tolist() == [8] * 10


def test_recordings_of_the_spoken_digits(data_dir):
  """The published split, without the speaker who is left out; the archive is its folder."""
  words = {'path': str(data_dir / 'fsdd/recordings.tar'), 'left_out': 'theo'}
  sizes = {'train': 2000, 'valid': 250, 'test': 250, 'left_out': 500}
  for split, size in sizes.items():
    clips = digits(**words, split=split)
    assert clips.size == size
    speakers = {clips.inner.source.describe(i)['speaker'] for i in range(size)}
    assert len(speakers) == (1 if split == 'left_out' else 5)
    assert (speakers == {'theo'}) == (split == 'left_out')


def test_wrong_words_of_digits_are_named(tmp_path):
  save(tmp_path / '3_anna_0.wav', tone())
  (tmp_path / 'x.tar').write_text('no archive')
  for words, message in (
    ({'split': 'tests'}, "split='tests': expected one of train, valid, test, left_out; did you"),
    ({'source': 'mnist'}, "source='mnist': expected one of fsdd, tones"),
    ({'source': 'fsdd'}, 'data.path: expected the folder recordings of the Free Spoken Digit'),
    ({'source': 'fsdd', 'path': str(tmp_path / 'none')}, 'no file .*none'),
    ({'source': 'fsdd', 'path': str(tmp_path / 'x.tar')}, 'expected a folder of recordings, or a'),
    ({'source': 'fsdd', 'path': str(tmp_path)}, 'DIGIT_SPEAKER_INDEX.wav of the split train'),
    ({'source': 'fsdd', 'path': str(tmp_path), 'left_out': 'bob'}, "'bob': expected one of anna"),
    ({'left_out': 'bob'}, "left_out='bob': tones have no speakers"),
    ({'split': 'left_out'}, "split='left_out': expected the name of a speaker in left_out"),
    ({'words': (3, 1)}, r'words=\(3, 1\): expected the least and the largest, from 1 on'),
    ({'seconds': 0.3}, 'seconds=0.3: expected enough for the longest word, 0.2. s, and two pauses'),
    ({'count': 0}, 'count=0: expected a finite number, 1 <= count'),
  ):
    with pytest.raises(InputError, match=message):
      sequences(**{**SMALL, **words})
