"""One execution, and one trial of several."""
