"""How the bundled miniature vision-language model was trained, from nothing."""
