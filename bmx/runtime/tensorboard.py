"""TensorBoard: scalars, texts and hyper-parameters as events, without torch or TensorFlow."""

import importlib
import os
import socket
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from bmx.runtime.files import appender
from bmx.runtime.storage import Place


class Events:
  """A file of TensorBoard events, written in the thread of the caller.

  Args:
    folder: the directory `tensorboard` of a run.
    step: completed steps at the start; TensorBoard hides later events of earlier files.
  """

  def __init__(self, folder: Place, step: int):
    import_tensorboard()
    from tensorboardX.proto import event_pb2

    proto: Any = event_pb2  # its classes are made at its import
    folder.mkdir(exist_ok=True, parents=True)
    name = f'events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}'
    self.file, self.event = appender(folder / name), proto.Event
    self._write(self.event(wall_time=time.time(), file_version='brain.Event:2'))
    if step:
      begun = proto.SessionLog(status=proto.SessionLog.START)
      self._write(self.event(wall_time=time.time(), step=step + 1, session_log=begun))

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Writes values of a step."""
    from tensorboardX.summary import scalar

    for name, value in values.items():
      summary = scalar(name, value)
      self._write(self.event(wall_time=time.time(), step=step, summary=summary))

  def texts(self, step: int, values: Mapping[str, str]) -> None:
    """Writes texts of a step, as TensorBoard shows Markdown: each as it is, in a block."""
    from tensorboardX.summary import text

    for name, value in values.items():
      block = '\n'.join(f'    {line}' for line in value.splitlines())
      summary = text(name, block.encode('utf-8', 'replace').decode())
      self._write(self.event(wall_time=time.time(), step=step, summary=summary))

  def hyperparameters(self, words: Mapping[str, Any], metrics: Sequence[str]) -> None:
    """Writes the words of a config for TensorBoard's table of hyper-parameters.

    Args:
      words: leaves of the config by dotted name.
      metrics: tags of scalars that the table shows beside them.
    """
    from tensorboardX.summary import hparams

    plain = lambda v: v if isinstance(v, bool | int | float | str) else str(v)
    experiment, start, _ = hparams({k: plain(v) for k, v in words.items()}, dict.fromkeys(metrics))
    for summary in (experiment, start):
      self._write(self.event(wall_time=time.time(), summary=summary))

  def _write(self, event: Any) -> None:
    """Writes a record: length, its checksum, content, its checksum."""
    from tensorboardX.record_writer import masked_crc32c

    content = event.SerializeToString()
    size = struct.pack('<Q', len(content))
    sums = [struct.pack('<I', masked_crc32c(x)) for x in (size, content)]
    self.file.write(size + sums[0] + content + sums[1])

  def flush(self) -> None:
    """Writes events that are kept."""
    self.file.flush()

  def close(self) -> None:
    """Closes the file."""
    self.file.close()


def import_tensorboard() -> None:
  """Imports tensorboardX without torch (1.5 s, 300 MiB), which no scalar needs."""
  hidden = sys.modules.get('torch', ...) is ...
  if hidden:
    sys.modules['torch'] = None  # type: ignore[assignment]
  try:
    importlib.import_module('tensorboardX')
  finally:
    if hidden:
      del sys.modules['torch']
