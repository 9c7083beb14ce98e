"""What each verb of the command line does once its arguments are parsed; a module has the name of its verb."""

from transformers.utils.logging import disable_progress_bar

disable_progress_bar()  # a bar for a load that takes a second; only the command line decides what is shown
