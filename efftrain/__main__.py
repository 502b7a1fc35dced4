"""`python -m efftrain`, and so `torchrun -m efftrain`: the same as the command."""

from efftrain.cli import main

main()
