"""Power laws: known ones are found, and intervals hold the runs that they promise."""

import json
import xml.etree.ElementTree

import numpy as np
import pytest

from bmx.core.errors import InputError
from bmx.modes import Request, scale
from bmx.plan import powerlaw

SIZES = [1e5, 2e5, 4e5, 8e5, 1.6e6, 3.2e6]


def test_a_law_without_noise_is_found():
  """Chinchilla's term of the parameters, 1.69 + 406.4 / N^0.34 (Hoffmann et al. 2022, eq. 10)."""
  sizes = [4e7, 1e8, 4e8, 1e9, 1e10]
  law = powerlaw.fit(sizes, [1.69 + 406.4 * n**-0.34 for n in sizes])
  assert law.exponent == pytest.approx(0.34, abs=1e-3)
  assert law.floor == pytest.approx(1.69, abs=5e-3)
  assert law.at(7e10) == pytest.approx(1.69 + 406.4 * 7e10**-0.34, abs=5e-3)


def test_intervals_hold_the_next_size():
  """90 % intervals from five noisy sizes hold the sixth in 17 or more of 20 trials."""
  random = np.random.default_rng(1)
  held = 0
  for trial in range(20):
    losses = [1.2 + 30 * n**-0.3 + random.normal(0, 0.01) for n in SIZES]
    _, (next_size,) = powerlaw.predict(SIZES[:5], losses[:5], SIZES[5:], draws=100, seed=trial)
    held += next_size.low <= losses[5] <= next_size.high
  assert held >= 15


@pytest.mark.parametrize(('sizes', 'losses', 'message'), [
  ([1, 2, 3], [3, 2, 1], 'at least 4 different'),
  ([1, 1, 2, 2], [3, 3, 2, 2], 'at least 4 different'),
  ([1, 2, 3, 4], [1, 2, 3, 4], 'do not fall'),
])  # fmt: skip
def test_what_no_law_describes(sizes, losses, message):
  with pytest.raises(InputError, match=message):
    powerlaw.fit(sizes, losses)


def test_the_mode(tmp_path, capsys, monkeypatch):
  """Six runs of a known law; a run that has not finished, and too few, are refused."""
  monkeypatch.chdir(tmp_path)
  for i, n in enumerate(SIZES):
    folder = tmp_path / f'run{i}'
    folder.mkdir()
    (folder / 'config.json').write_text('{"config": {}}')
    metrics = {'loss': 9.0, 'eval/valid/loss': 1.2 + 30 * n**-0.3}
    (folder / 'summary.json').write_text(json.dumps({'parameters': n, 'metrics': metrics}))
  runs = tuple(str(tmp_path / f'run{i}') for i in range(6))
  assert scale.run(Request(None, '', runs=runs)) == 0
  out = capsys.readouterr().out
  assert '^-0.300' in out
  assert '6,400,000 parameters: 1.47' in out
  assert json.loads((tmp_path / 'scale.json').read_text())['metric'] == 'eval/valid/loss'
  drawn = xml.etree.ElementTree.parse(tmp_path / 'scale.svg').getroot()
  dots = [float(dot.attrib['cx']) for dot in drawn.findall('{*}circle')]
  assert np.ptp(np.diff(dots)) <= 0.2  # sizes double: equal steps on a logarithmic axis
  assert len(drawn.findall('{*}line/{*}title')) == 3
  (law,) = drawn.findall('{*}polyline')
  line = [point.split(',') for point in law.attrib['points'].split()]
  heights = np.interp(dots, *np.array(line, float).T)
  ours = [float(dot.attrib['cy']) for dot in drawn.findall('{*}circle')]
  assert heights == pytest.approx(ours, abs=0.5)  # the law passes through its runs
  (tmp_path / 'run5/summary.json').unlink()
  with pytest.raises(InputError, match='run5: expected a run that has finished'):
    scale.run(Request(None, '', runs=runs))
  with pytest.raises(InputError, match='at least 4 run directories'):
    scale.run(Request(None, '', runs=runs[:3]))
