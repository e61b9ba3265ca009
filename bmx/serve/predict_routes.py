"""Route of a model that predicts: `/v1/predict`."""

import time
import uuid
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.responses import Response

from bmx.serve.predictions import Predictions
from bmx.serve.service import Answered, Call, Handler

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class PredictionService:
  """Predictions of one model over HTTP; see `bmx.serve.service:Service`.

  Args:
    predictions: the model.
  """

  ability = 'the model predicts instances and generates no text: expected /v1/predict'
  page = 'predict.html'

  def __init__(self, predictions: Predictions):
    self.predictions, self.worker = predictions, predictions.worker
    self.names = (predictions.name,)
    self.facts: dict[str, Any] = {'model': predictions.name, 'columns': predictions.columns}
    self.routes: dict[str, Handler] = {'/v1/predict': self._predict}

  def count(self, registry: CollectorRegistry) -> None:
    """Registers instances, and rows of a batch."""
    kwargs: Any = {'registry': registry}
    self.instances = Counter('bmx_instances', 'Instances predicted', **kwargs)
    rows = Histogram('bmx_batch_rows', 'Rows of a batch', buckets=BATCHES, **kwargs)
    self.worker.on_batch = rows.observe

  async def _predict(self, call: Call) -> Response:
    instances = self.predictions.instances(call.body)
    rows = await self.predictions.rows(instances, call.timeout)
    self.instances.inc(len(instances))
    answer = {
      'id': f'pred-{uuid.uuid4().hex}',
      'object': 'prediction',
      'created': int(time.time()),
      'model': self.predictions.name,
      'predictions': rows,
    }
    response = Answered(answer)  # before an observer sees the values, which it may change
    call.observed(answer, len(response.body))
    return response
