"""How it is measured: who takes part, whether they are right, clocks, memory, floors."""
