"""The command line: one file per verb, what they share, and in ``actions`` what each verb does."""
