"""What the verbs of the command line do, once their arguments are parsed. One module for each kind of work."""

from transformers.utils.logging import disable_progress_bar

disable_progress_bar()  # a bar for a load that takes a second; only the command line decides what is shown
