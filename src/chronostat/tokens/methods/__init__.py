"""The methods by name: one file each."""

from chronostat.tokens.methods.attention import Attention
from chronostat.tokens.methods.method import Method
from chronostat.tokens.methods.norm import Norm
from chronostat.tokens.methods.pool import Pool
from chronostat.tokens.methods.prompt import Prompt
from chronostat.tokens.methods.stride import Stride

METHODS: dict[str, type[Method]] = {method.name: method for method in (Pool, Stride, Norm, Attention, Prompt)}
