"""Folders with COCO annotations: boxes and masks follow their image; bad files are named."""

import json

import numpy as np
import pytest
from PIL import Image

from bmx.core.errors import InputError
from bmx.data.images import annotated as annotated_module
from bmx.data.images import coco as coco_module
from bmx.data.images.coco import coco
from bmx.data.images.masks import decode
from bmx.tasks.average_precision import true_boxes

SIZES = {'a.png': (40, 20), 'b.jpg': (16, 30), 'c.png': (24, 24)}  # width, height
RED = (220, 30, 30)


def box_item(number, image, category, box, **more):
  return {'id': number, 'image_id': image, 'category_id': category, 'bbox': box, **more}


def content():
  """Two categories whose ids are neither dense nor sorted by name."""
  images = [{'id': 10 + i, 'file_name': name, 'width': w, 'height': h}
            for i, (name, (w, h)) in enumerate(SIZES.items())]  # fmt: skip
  corners = lambda l, t, w, h: [[l, t, l + w, t, l + w, t + h, l, t + h]]
  runs = {'size': [30, 16], 'counts': [30 * 4 + 5, 10, 20, 10, 30 * 11 - 15]}
  items = [
    box_item(1, 10, 90, [4, 6, 20, 10], segmentation=corners(4, 6, 20, 10), area=150.0),
    box_item(2, 11, 7, [4, 5, 2, 10], segmentation=runs),
    box_item(3, 10, 7, [30, 0, 10.5, 8], segmentation=corners(30, 0, 10, 8), iscrowd=1),
  ]
  names = [{'id': 90, 'name': 'apple'}, {'id': 7, 'name': 'pear'}]
  return {'images': images, 'categories': names, 'annotations': items}


@pytest.fixture
def folder(tmp_path):
  for name, size in SIZES.items():
    picture = Image.new('RGB', size, (40, 200, 90))
    if name == 'a.png':
      picture.paste(RED, (4, 6, 24, 16))
    picture.save(tmp_path / name)
  write(tmp_path, content())
  return tmp_path


def write(folder, made):
  (folder / 'annotations.json').write_text(json.dumps(made))


def every(data):
  return data.rows(np.arange(data.size), np.arange(data.size))


def test_boxes_follow_their_image(folder):
  data = coco(str(folder), size=32, train=False)
  rows = every(data)
  assert data.metadata['class_names'] == ['pear', 'apple'] and data.metadata['num_classes'] == 2
  assert rows['image'].shape == (3, 32, 32, 3) and rows['boxes'].shape == (3, 2, 4)
  assert rows['box_weights'].tolist() == [[1, 1], [1, 0], [0, 0]]
  assert rows['box_label'][0].tolist() == [1, 0] and rows['box_crowd'][0].tolist() == [0, 1]
  assert rows['box_area'][0].tolist() == [150, 84] and rows['box_area'][1, 0] == 20
  red = rows['image'][0, ..., 0] > rows['image'][0, ..., 1]
  y, x = np.nonzero(red)
  np.testing.assert_allclose(
    rows['boxes'][0, 0], [y.min(), x.min(), y.max() + 1, x.max() + 1], atol=1
  )
  assert (rows['image'][0, 16:] == rows['image'][0, -1, -1]).all(), 'the rest has one color'
  original = true_boxes(rows)
  np.testing.assert_allclose(original[0, 0], [6, 4, 16, 24], atol=1e-5)
  np.testing.assert_allclose(original[0, 1], [0, 30, 8, 40], atol=1e-5)  # cut off at the edge
  assert data.describe(np.array([1])) == [{'file': 'b.jpg'}]


def test_masks_follow_their_image(folder):
  data = coco(str(folder), kind='masks', size=40, train=False)
  rows = every(data)
  assert data.metadata['class_names'] == ['background', 'pear', 'apple']
  expected = np.zeros((40, 40), int)
  expected[6:16, 4:24] = 2  # scale 1: pixels are those of the file
  np.testing.assert_array_equal(rows['mask'][0], expected)
  weights = np.zeros((40, 40))
  weights[:20] = 1
  weights[:8, 30:40] = 0  # a crowd
  np.testing.assert_array_equal(rows['mask_weights'][0], weights)
  rows_b, columns_b = np.nonzero(rows['mask'][1] == 1)  # from 16 × 30 to 21 × 40
  assert abs(rows_b.min() - 5 * 4 / 3) <= 1 and abs(columns_b.max() + 1 - 6 * 4 / 3) <= 1


def test_large_sets_are_decoded_as_they_are_needed(folder, monkeypatch):
  words = {'kind': 'masks', 'size': 32, 'flip': True, 'crop': 2, 'seed': 4}
  memory = coco(str(folder), **words)
  monkeypatch.setattr(coco_module, 'RESIDENT_BYTES', 0)
  threads = coco(str(folder), **words)
  assert isinstance(threads, annotated_module.AnnotatedData)
  order, positions = np.array([2, 0, 1, 0]), np.array([9, 10, 11, 12])
  for name, array in memory.rows(order, positions).items():
    np.testing.assert_array_equal(threads.rows(order, positions)[name], array)
  assert memory.spec == threads.spec and memory.state() == threads.state()
  assert threads.digest() == coco(str(folder), **words).digest()


def test_a_run_reads_other_files_by_its_own_classes(folder, tmp_path_factory):
  known = coco(str(folder), size=32)
  made = content()
  made['categories'] = [{'id': 1, 'name': 'apple'}]
  made['annotations'] = [box_item(1, 11, 1, [1, 1, 5, 5])]
  write(folder, made)
  rows = every(coco(str(folder), size=99, fitted=known.state(), train=False))
  assert rows['box_label'][1, 0] == 1 and rows['image'].shape[1] == 32
  made['categories'][0]['name'] = 'plum'
  write(folder, made)
  with pytest.raises(InputError, match=r"category 'plum': expected one of .* pear, apple"):
    coco(str(folder), fitted=known.state(), train=False)


def test_images_without_annotations_are_predicted(folder):
  state = coco(str(folder), size=32).state()
  (folder / 'annotations.json').unlink()
  (folder / 'd.png').write_text('no image')
  data = coco(str(folder), fitted=state, train=False, unreadable='skip')
  assert 'boxes' not in data.spec and data.size == 3 and data.metadata['unreadable'] == 1
  assert [d['file'] for d in data.describe(np.arange(3))] == list(SIZES)
  one = coco(str(folder / 'a.png'), fitted=state, train=False)
  assert every(one)['frame'].tolist() == [[pytest.approx(0.8), pytest.approx(0.8), 20, 40]]


def test_bad_objects_are_dropped_on_demand(folder, caplog):
  made = content()
  made['annotations'] += [box_item(8, 12, 7, [3, 3, 0, 5]), box_item(9, 12, 7, [1, 2, 3, 4])]
  write(folder, made)
  with pytest.raises(InputError, match='annotation 8 of c.png'):
    coco(str(folder))
  rows = every(coco(str(folder), invalid='drop', train=False))
  assert rows['box_weights'].sum() == 4 and 'annotation 8 of c.png' in caplog.text


def changed(**change):
  """The annotations with the first object changed."""
  made = content()
  made['annotations'][0] |= change
  return made


@pytest.mark.parametrize(('made', 'words', 'message'), [
  (changed(bbox=[35, 6, 20, 10]), {}, r'annotation 1 of a.png: bbox=\[35\.0, 6\.0, 20\.0, 10\.0\]: '
   'expected a box inside the image of 40 × 20 pixels; correct it, or set --data.invalid=drop'),
  (changed(bbox=[4, 6, 20]), {}, r'bbox=\[4, 6, 20\]: expected \[left, top, width, height\]'),
  (changed(bbox=[4, 6, -2, 5]), {}, 'with a width and a height above 0'),
  (changed(image_id=3), {}, 'annotation 1: image_id=3 is not in the file'),
  (changed(category_id=3), {}, 'annotation 1: category_id=3 is not in the file'),
  (changed(id=2), {}, r'annotations\[1\]: expected an id of its own, not 2'),
  (changed(segmentation={'size': [10, 10], 'counts': [100]}), {'kind': 'masks'},
   r'annotation 1 of a.png: the mask has the size \[10, 10\], the image \[20, 40\]'),
  (changed(segmentation={'size': [20, 40], 'counts': [100, 5]}), {'kind': 'masks'},
   'expected run lengths of 800 pixels, found those of 105'),
  (changed(segmentation=[[1, 2, 3, 4]]), {'kind': 'masks'}, r'expected a polygon \[x, y'),
  (changed(segmentation=[]), {'kind': 'masks'}, 'annotation 1 of a.png: expected a mask'),
  ({**content(), 'images': [{'id': 10, 'file_name': 'none.png'}], 'annotations': []}, {},
   'none.png: expected an image that the annotations name'),
  ({**content(), 'images': [{'id': 10, 'file_name': 'a.png', 'width': 20, 'height': 40}],
    'annotations': []}, {}, 'a.png has 40 × 20 pixels, its annotations 20 × 40'),
  ({**content(), 'categories': {}}, {}, "expected a list 'categories'"),
  ({**content(), 'categories': []}, {}, 'expected at least one image and one category'),
  ({**content(), 'images': [{'id': 1}]}, {}, r'images\[0\]: expected file_name'),
  ([], {}, 'expected a JSON object with images, categories and annotations'),
  (content(), {'most': 1}, 'most=1: expected at least 2, the boxes of a.png'),
  (content(), {'kind': 'box'}, "kind='box': expected one of boxes, masks"),
])  # fmt: skip
def test_what_does_not_fit_is_named(folder, made, words, message):
  write(folder, made)
  with pytest.raises(InputError, match=message):
    coco(str(folder), **words)


def test_missing_files_are_named(folder):
  (folder / 'annotations.json').write_text('{"images": [')
  with pytest.raises(InputError, match=r'annotations\.json: expected annotations as JSON'):
    coco(str(folder))
  (folder / 'annotations.json').unlink()
  with pytest.raises(InputError, match=r'json: expected a file of annotations: No such'):
    coco(str(folder))
  with pytest.raises(InputError, match='expected a folder with annotations.json'):
    coco('')


@pytest.fixture
def reference():
  return pytest.importorskip('pycocotools.mask', reason='the extra `reference` is not installed')


def test_run_lengths_are_those_of_pycocotools(reference):
  random = np.random.default_rng(0)
  for shape in ((7, 9), (1, 300), (64, 48)):
    mask = random.random(shape) < random.uniform(0.1, 0.9)
    mask[:, : shape[1] // 3] = shape[0] > 1  # long runs need several characters
    runs = reference.encode(np.asfortranarray(mask.astype(np.uint8)))
    np.testing.assert_array_equal(decode(runs, shape, 'here'), mask)
    text = {**runs, 'counts': runs['counts'].decode()}
    np.testing.assert_array_equal(decode(text, shape, 'here'), mask)


@pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning')  # of pycocotools
def test_polygons_are_nearly_those_of_pycocotools(reference):
  """They differ in pixels that a side cuts."""
  random = np.random.default_rng(1)
  for _ in range(10):
    angles = np.sort(random.uniform(0, 2 * np.pi, 7))
    corners = 40 + np.stack([np.cos(angles), np.sin(angles)], 1) * random.uniform(15, 35, (7, 1))
    polygon = [corners.reshape(-1).tolist()]
    runs = reference.merge(reference.frPyObjects(polygon, 80, 80))
    expected, found = reference.decode(runs).astype(bool), decode(polygon, (80, 80), 'here')
    assert (found & expected).sum() / (found | expected).sum() > 0.93
