"""How far two right results of the tiny models may lie apart, from the roundings on the way.

A rounding of fp32 is u = 2^-24, 6e-8. Adding n terms in another order moves a sum by sqrt(n) u of
its terms' size as a rule, and by n u at most. Every bound leaves a factor of a few above the rule,
and lies far below what the tests' faults do, which is beside each of them.
"""

SUMS = 1e-5
"""Relative: a loss, a KL or a gradient from states that are the same but for their order of
additions. The longest sums have some 10^4 terms (rows by vocabulary, or all rows of a gradient):
100 u as a rule, and 160 u are allowed."""

STATES = 1e-4
"""Relative to the largest: logits, and what is made of them, where the backbone ran on other shapes
(padded, packed, batched, by process) or with adapters merged into its weights. Two layers have 14
products of 32 to 64 terms, 8 u each, and their norms, softmaxes and the head multiply what came
before by up to 4: 14 x 8 x 4 u are 3e-5."""

NO_KL = 1e-6
"""Nats: the KL of a student that is its reference. Both sides' log-confidences, of up to 16 nats,
are rounded by 16 u, which the KL weighs by confidences whose sum is 1."""

NO_KL_ACROSS = 1e-5
"""Nats: the same, where the reference's states came from other shapes or other weights (merged):
its logits, of some units, are off by `STATES` at most, and a KL between two near distributions goes
with the square of that, beside the roundings of `NO_KL`."""

AFTER_ADAM = 1e-3
"""Relative to a tensor's largest entry: weights after a few steps of Adam at a rate of 1e-2. An
update is lr g / sqrt(v): where a gradient's entry is as small as its error, `SUMS` of the largest
one, the update is any part of lr. Such entries are few, and their parts average to less than a
tenth of lr, 1e-3 of weights of size 1."""

EXACT = 1e-12
"""Relative, in fp64, where u is 2^-53 or 1.1e-16: sums of up to 10^3 terms in another order are off
by 10^3 u at most, and what is made of them by a few times that."""
