"""The bundled task in pictures of different number and size."""

import numpy as np
import pytest

from chronostat.data.demo import DemoSizesTask, DemoTask
from chronostat.errors import DataError

SPLITS = ("train", "validation", "test")


def shapes_of(sample):
    return [image.size for image in sample.load_images()]


@pytest.mark.parametrize("name", SPLITS)
def test_the_questions_are_those_of_the_demo_task_and_its_splits(name):
    samples, plain = DemoSizesTask(seed=3).split(name), DemoTask(seed=3).split(name)
    assert len(samples) == len(plain)
    for i in (0, 17, -1):
        assert (samples[i].prompt, samples[i].references, samples[i].kind, samples[i].split) == (
            plain[i].prompt,
            plain[i].references,
            plain[i].kind,
            name,
        )
    assert samples[17].id == f"demo-sizes-{name}-000017"
    assert [sample.id for sample in samples[5:7]] == [f"demo-sizes-{name}-{i:06d}" for i in (5, 6)]


def test_samples_are_the_same_on_every_look():
    looks = [DemoSizesTask().split("test")[11].load_images() for _ in range(2)]
    assert [image.tobytes() for image in looks[0]] == [image.tobytes() for image in looks[1]]
    other = DemoSizesTask(seed=1).split("test")[11].load_images()
    assert [image.tobytes() for image in looks[0]] != [image.tobytes() for image in other]


def test_one_to_six_pictures_of_several_shapes_and_the_scene_last():
    drawn = [shapes_of(sample) for sample in DemoSizesTask().split("train")[:200]]
    assert {len(shapes) for shapes in drawn} == {1, 2, 3, 4, 5, 6}
    assert {shapes[-1] for shapes in drawn} == {(40, 40), (64, 64), (80, 80), (128, 128)}
    previews = np.array([shape for shapes in drawn for shape in shapes[:-1]])
    aspects = previews[:, 0] / previews[:, 1]
    assert all((abs(np.log(aspects / asked)) < 0.05).any() for asked in (1 / 3, 1 / 2, 1, 2, 3))
    areas = previews.prod(axis=1)
    assert 27**2 < areas.min() < 32**2 < 48**2 < areas.max() < 53**2


def test_the_last_picture_of_full_size_is_the_scene_itself():
    samples, plain = DemoSizesTask().split("validation"), DemoTask().split("validation")
    whole = next(i for i in range(20) if shapes_of(samples[i])[-1] == (128, 128))
    assert samples[whole].load_images()[-1].tobytes() == plain[whole].load_images()[0].tobytes()


def test_an_unknown_split_is_refused():
    with pytest.raises(DataError, match="no split 'dev'; it has train, validation, test"):
        DemoSizesTask().split("dev")
