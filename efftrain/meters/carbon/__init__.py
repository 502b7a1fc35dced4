"""Grams of CO2e and litres of water: from the joules of a run, and from the making of its hardware."""
