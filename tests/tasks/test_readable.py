"""Predictions with the names of the data."""

import numpy as np
import pytest

from bmx.models.mlp import MLP
from bmx.tasks import readable
from bmx.tasks.classification import BinaryClassification, Classification
from bmx.tasks.regression import Regression


def test_names_of_classes():
  rows = {'prediction': np.array([1, 0]), 'probability': np.array([[0.25, 0.75], [1, 0]]),
          'label': np.array([1, 1])}  # fmt: skip
  told = Classification(MLP(2)).readable(rows, {'class_names': ('no', 'yes')})
  assert told == [
    {'prediction': 'yes', 'probability': {'no': 0.25, 'yes': 0.75}, 'label': 'yes'},
    {'prediction': 'no', 'probability': {'no': 1.0, 'yes': 0.0}, 'label': 'yes'},
  ]
  unnamed = Classification(MLP(2)).readable({k: rows[k] for k in ('prediction', 'probability')}, {})
  assert unnamed[0] == {'prediction': 1, 'probability': {'0': 0.25, '1': 0.75}}


def test_a_binary_task_tells_both_classes():
  rows = {'prediction': np.array([1]), 'score': np.array([0.75])}
  (told,) = BinaryClassification(MLP(1)).readable(rows, {'class_names': ('<=50K', '>50K')})
  assert told == {'prediction': '>50K', 'probability': {'<=50K': 0.25, '>50K': 0.75}}


def test_of_many_classes_the_most_likely_are_told():
  shares = np.random.default_rng(0).dirichlet(np.ones(100))
  (told,) = readable.classes({'prediction': np.array([7])}, shares[None], {})
  assert len(told['probability']) == readable.TOP
  assert min(told['probability'].values()) >= np.sort(shares)[-readable.TOP]


def test_numbers():
  rows = {'prediction': np.array([[1.5], [2.0]]), 'y': np.array([[1.0], [2.0]])}
  told = Regression(MLP(1)).readable(rows, {})
  assert told == [{'prediction': 1.5, 'y': 1.0}, {'prediction': 2.0, 'y': 2.0}]
  two = Regression(MLP(2)).readable({'prediction': np.array([[1.0, 2.0]])}, {})
  assert two == [{'prediction': [1.0, 2.0]}]
  assert told[0]['prediction'] == pytest.approx(1.5)
