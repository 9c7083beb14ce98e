"""What the controller sees of a request."""

from dataclasses import replace
from math import log1p

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from chronostat.control.observation import Observer
from chronostat.data.samples import Sample
from chronostat.errors import DataError, ModelError
from chronostat.execution.execute import BatchRequest, SampleRequest
from stand_ins.control_fixtures import StandIn, trial_input


class Processor:
    """As much of a processor as an observer uses: words w0 to w7 are tokens 0 to 7."""

    def __init__(self):
        from tokenizers import Tokenizer
        from tokenizers.models import WordLevel
        from tokenizers.pre_tokenizers import WhitespaceSplit

        backend = Tokenizer(WordLevel({f"w{i}": i for i in range(8)}, unk_token="w7"))
        backend.pre_tokenizer = WhitespaceSplit()
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="w7")


class SlowProcessor:
    """One whose tokenizer is written in Python."""

    class tokenizer:  # noqa: N801 - an attribute of that name
        @staticmethod
        def encode(text, *, add_special_tokens):
            assert not add_special_tokens
            return [int(word[1:]) for word in text.split()]


def request(prompt="w1 w3", kind=None, images=None):
    images = images if images is not None else [Image.new("RGB", (128, 64), (255, 0, 51))]
    sample = Sample(
        id="a", split="train", prompt=prompt, references=("x",), load_images=lambda: tuple(images), kind=kind
    )
    return SampleRequest(sample=sample, images=images, processor=Processor(), quality=None)


@pytest.fixture
def observer():
    return Observer(StandIn(), Processor())


def test_mean_embedding_thumbnail_and_sizes(observer):
    seen = observer(request())
    assert seen.shape == (observer.size,) == (4 + 192 + 4,)
    assert seen.dtype == torch.float32
    # rows 1 and 3 of the embeddings are 4..7 and 12..15
    assert seen[:4].tolist() == [8.0, 9.0, 10.0, 11.0]
    pixels = seen[4:196].reshape(8, 8, 3)
    assert pixels[3, 5].tolist() == pytest.approx([0.5, -0.5, -0.3])  # 255 / 255 - .5, 0 - .5, 51 / 255 - .5
    assert seen[196:].tolist() == pytest.approx([log1p(2), log1p(1), log1p(128), log1p(64)])


@pytest.mark.parametrize("size", [(128, 128), (100, 70), (8, 8), (5, 300)])
def test_the_thumbnail_is_the_mean_colour_of_each_part(observer, size):
    gradient = np.linspace(0, 255, size[0], dtype=np.uint8)
    image = Image.fromarray(np.repeat(np.broadcast_to(gradient, size[::-1])[..., None], 3, axis=2))
    pixels = observer(request(images=[image]))[4:196].reshape(8, 8, 3)
    columns = pixels.mean(dim=(0, 2))
    assert bool((columns.diff() >= 0).all())
    assert float(pixels.mean()) == pytest.approx(0.0, abs=0.03)


def test_images_that_are_not_rgb_look_the_same(observer):
    grey = Image.new("L", (64, 64), 100)
    assert torch.equal(observer(request(images=[grey])), observer(request(images=[grey.convert("RGB")])))
    assert observer(request(images=[grey.convert("RGBA")])).shape == (observer.size,)


def test_the_kind_of_question_and_the_answer_are_never_seen(observer):
    plain = request()
    other = replace(plain, sample=replace(plain.sample, kind="sum", id="b", references=("y",), split="test"))
    assert torch.equal(observer(plain), observer(other))


def test_prompt_and_image_are_seen(observer):
    assert not torch.equal(observer(request("w1")), observer(request("w2")))
    assert not torch.equal(observer(request()), observer(request(images=[Image.new("RGB", (128, 64))])))


def test_an_empty_prompt_is_zero_and_not_nan(observer):
    seen = observer(request(""))
    assert seen[:4].tolist() == [0.0] * 4
    assert bool(torch.isfinite(seen).all())


def test_a_tokenizer_without_a_backend_sees_the_same(observer):
    assert torch.equal(observer(request()), Observer(StandIn(), SlowProcessor())(request()))


def test_a_ready_batch_has_no_picture():
    seen = Observer(StandIn(), None)(trial_input(1))
    # tokens 1 and 3
    assert seen[:4].tolist() == [8.0, 9.0, 10.0, 11.0]
    assert seen[4:196].abs().sum() == 0
    assert seen[196:].tolist() == pytest.approx([log1p(2), 0, 0, 0])


def test_image_placeholders_are_no_words():
    model = StandIn()
    model.config = type("Config", (), {"image_token_id": 7})()
    batch = BatchRequest(batch={"input_ids": torch.tensor([[7, 7, 1, 7, 3]])}, id="a")
    assert Observer(model, None)(batch)[:4].tolist() == [8.0, 9.0, 10.0, 11.0]


def test_token_embeddings_in_two_tables():
    model = StandIn()
    table = model.embedding.weight
    model.embedding = torch.nn.ParameterDict({"new": torch.full((2, 4), 100.0), "words": table})
    seen = Observer(model, None)(BatchRequest(batch={"input_ids": torch.tensor([[1, 9, 3, -1]])}, id="a"))
    assert seen[:4].tolist() == [8.0, 9.0, 10.0, 11.0]  # 9 stands in the second table


def test_a_model_without_token_embeddings(monkeypatch):
    model = StandIn()
    model.embedding = torch.nn.Identity()
    with pytest.raises(ModelError, match=r"of StandIn gives no table \[vocabulary, width\]"):
        Observer(model, None)


def test_a_batch_without_ids():
    with pytest.raises(DataError, match="the batch a holds no input_ids, which the controller reads"):
        Observer(StandIn(), None)(BatchRequest(batch={"inputs_embeds": torch.zeros(1, 2, 4)}, id="a"))


def test_a_learner_may_differentiate_through_it(observer):
    weight = torch.ones(observer.size, requires_grad=True)
    (observer(request()) @ weight).backward()
    assert weight.grad is not None
