"""What the controller sees of a request."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

import chronostat.control.observer
from chronostat.control.observer import Observer
from chronostat.data.samples import Sample
from chronostat.errors import DataError, ModelError
from chronostat.execution.execute import BatchRequest, SampleRequest
from chronostat.execution.sizes import RequestSizes
from chronostat.knobs.space import ActionSpace
from stand_ins.control_fixtures import StandIn, trial_input

SPACE = ActionSpace({"vision_tokens": (272, 80, 16), "block_skip": ((), (3, 4))})


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


@pytest.fixture(scope="module")
def observer(bundled):
    return Observer(bundled.model, bundled.processor, SPACE)


@pytest.fixture
def of_words(monkeypatch):
    """An observer whose processor knows eight words; sizes come from elsewhere."""

    class Sizes:
        def __init__(self, model, processor, space):
            self.asked = []

        def of(self, shapes, text_tokens):
            self.asked.append((shapes, text_tokens))
            return np.full((2, 2), float(text_tokens))

    monkeypatch.setattr(chronostat.control.observer, "RequestSizes", Sizes)
    return lambda processor: Observer(StandIn(), processor, SPACE)


def test_mean_embedding_of_the_prompt_and_its_size(of_words):
    observer = of_words(Processor())
    seen = observer(request())
    assert observer.width == 4
    # rows 1 and 3 of the embeddings are 4..7 and 12..15
    assert seen.prompt.tolist() == [8.0, 9.0, 10.0, 11.0]
    assert seen.prompt.dtype == np.float64
    assert observer._sizes.asked == [(((64, 128),), 2)]  # height and width, two words
    assert seen.tokens.tolist() == [[2.0, 2.0]] * 2


def test_tokens_are_those_under_each_setting(observer, bundled):
    seen = observer(request("Count the shapes."))
    told = RequestSizes(bundled.model, bundled.processor, SPACE)(request("Count the shapes."))
    assert seen.tokens.shape == (len(SPACE), 2)
    assert np.array_equal(seen.tokens, told)


def test_a_sample_that_is_not_executed_is_seen_alike_and_its_images_are_not_loaded_where_their_size_is_told(observer):
    loaded = []
    executed = request()

    def load():
        loaded.append(1)
        return tuple(executed.images)

    told = replace(executed.sample, load_images=load, image_shapes=lambda: ((64, 128),))
    untold = replace(told, image_shapes=None)
    expected = observer(executed)
    for sample, loads in ((told, 0), (untold, 1)):
        seen = observer.seen(sample)
        assert np.array_equal(seen.prompt, expected.prompt)
        assert np.array_equal(seen.tokens, expected.tokens)
        assert len(loaded) == loads


def test_looking_runs_no_part_of_the_model_and_resizes_nothing(observer, bundled, monkeypatch):
    def never(*given, **named):
        raise AssertionError("the model ran")

    monkeypatch.setattr(type(bundled.model), "forward", never)
    monkeypatch.setattr(Image.Image, "resize", never)
    assert np.isfinite(observer(request()).prompt).all()


def test_the_kind_of_question_and_the_answer_are_never_seen(of_words):
    observer, plain = of_words(Processor()), request()
    other = replace(plain, sample=replace(plain.sample, kind="sum", id="b", references=("y",), split="test"))
    assert np.array_equal(observer(plain).prompt, observer(other).prompt)


def test_the_prompt_is_seen(of_words):
    observer = of_words(Processor())
    assert not np.array_equal(observer(request("w1")).prompt, observer(request("w2")).prompt)


def test_an_empty_prompt_is_zero_and_not_nan(of_words):
    assert of_words(Processor())(request("")).prompt.tolist() == [0.0] * 4


def test_a_tokenizer_without_a_backend_sees_the_same(of_words):
    first, second = of_words(Processor())(request()), of_words(SlowProcessor())(request())
    assert np.array_equal(first.prompt, second.prompt)
    assert np.array_equal(first.tokens, second.tokens)


def test_weights_of_another_type_are_read_as_numbers():
    model = StandIn().to(torch.bfloat16)
    seen = Observer(model, None, SPACE)(trial_input(1))
    assert seen.prompt.tolist() == [8.0, 9.0, 10.0, 11.0]
    assert seen.prompt.dtype == np.float64


def test_a_ready_batch_is_what_it_is_under_every_setting():
    observer = Observer(StandIn(), None, SPACE)
    for seen in (observer(trial_input(1)), observer.seen(trial_input(1))):
        assert seen.prompt.tolist() == [8.0, 9.0, 10.0, 11.0]  # tokens 1 and 3
        assert np.isfinite(seen.tokens).all()
        assert seen.tokens[:, 1].tolist() == [2.0] * len(SPACE)
        assert len(np.unique(seen.tokens, axis=0)) == 1


def test_image_placeholders_are_no_words():
    model = StandIn()
    model.config = type("Config", (), {"image_token_id": 7})()
    batch = BatchRequest(batch={"input_ids": torch.tensor([[7, 7, 1, 7, 3]])}, id="a")
    assert Observer(model, None, SPACE)(batch).prompt.tolist() == [8.0, 9.0, 10.0, 11.0]


def test_token_embeddings_in_two_tables():
    model = StandIn()
    table = model.embedding.weight
    model.embedding = torch.nn.ParameterDict({"new": torch.full((2, 4), 100.0), "words": table})
    seen = Observer(model, None, SPACE)(BatchRequest(batch={"input_ids": torch.tensor([[1, 9, 3, -1]])}, id="a"))
    assert seen.prompt.tolist() == [8.0, 9.0, 10.0, 11.0]  # 9 stands in the second table


def test_a_model_without_token_embeddings(monkeypatch):
    model = StandIn()
    model.embedding = torch.nn.Identity()
    with pytest.raises(ModelError, match=r"of StandIn gives no table \[vocabulary, width\]"):
        Observer(model, None, SPACE)


def test_a_batch_without_ids():
    with pytest.raises(DataError, match="the batch a holds no input_ids, which the controller reads"):
        Observer(StandIn(), None, SPACE)(BatchRequest(batch={"inputs_embeds": torch.zeros(1, 2, 4)}, id="a"))
