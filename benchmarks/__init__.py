"""Can the numbers be trusted, and what pays? One file or package for each question: see README.md beside this file."""
