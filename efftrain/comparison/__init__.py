"""Records in; ratios to the baseline, verdicts and flags out."""
