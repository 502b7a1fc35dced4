"""Which tokens a step reads: functions of step, rank and seed."""
