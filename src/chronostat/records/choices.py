"""What a configuration and the command line choose among; here, so that ``--help`` loads no configuration."""

from typing import Literal

DeviceName = Literal["auto", "cpu", "cuda"]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
Attention = Literal["auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"]
EngineChoice = Literal["eager", "graph", "auto"]
DEFAULT_NEW_TOKENS = 8  # of the longest answer
DEFAULT_THREADS = 1  # of torch on the CPU
MOST_THREADS = 1024  # some thousands end the process from within torch, without a message
