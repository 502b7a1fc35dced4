"""Where the joules went: by phase of the step, by span, by module, by op."""
