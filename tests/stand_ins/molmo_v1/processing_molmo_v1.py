"""The processor that such a checkpoint brings as code, as far as loading and decoding need it."""

from transformers import ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor


class MolmoV1ImageProcessor(BaseImageProcessor):
    pass


class MolmoV1Processor(ProcessorMixin):
    attributes = ("image_processor", "tokenizer")
    image_processor_class = "AutoImageProcessor"
    tokenizer_class = "AutoTokenizer"

    def __init__(self, image_processor=None, tokenizer=None, **_):
        super().__init__(image_processor, tokenizer)
