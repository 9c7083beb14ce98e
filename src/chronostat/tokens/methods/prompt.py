"""``prompt``: the image tokens that are most alike to the text of the prompt."""

from torch.nn.functional import normalize

from chronostat.errors import KnobError
from chronostat.tokens.methods.method import Method
from chronostat.tokens.selection import Picture, Selection, highest


class Prompt(Method):
    """The tokens with the highest mean cosine similarity to the embeddings of the prompt's text tokens.

    The relevance that Zhang et al. 2025 (CDPruner, arXiv:2506.10967) give each token, with both sides in the space of
    the language model's embeddings, and without their second part, which makes the kept tokens unlike each other. The
    paper defines it so; their published code negates it, in the space of CLIP. Song et al. 2024 (TRIM,
    arXiv:2409.10994) choose by similarity in the space of CLIP.
    """

    name = "prompt"

    def choose(self, picture: Picture, count: int) -> Selection:
        """The mean of cosines is the product with the mean of the normed text embeddings."""
        embeddings = self._model.get_input_embeddings()(self._text_ids)
        width, own = embeddings.shape[-1], picture.features.shape[-1]
        if width != own:
            raise KnobError(
                f"image_keep = prompt: the image features of {type(self._model).__name__} have {own} numbers where "
                f"they are chosen, its text embeddings {width}: they cannot be compared; use another method"
            )
        if not len(embeddings):
            raise KnobError(
                "image_keep = prompt: there is no text beside the image, so no token is more alike to it than another; "
                "use another method"
            )
        text = normalize(embeddings.float(), dim=-1).mean(dim=0)
        return highest(normalize(picture.features.float(), dim=-1) @ text, count)
