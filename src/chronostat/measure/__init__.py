"""What it costs: clocks, stages of one ``generate()``, the machine's conditions. Knows no knob."""
