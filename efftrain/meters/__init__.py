"""From a journal's raw facts to figures: pure functions, run after the fact, on any machine, without torch."""
