"""The preference reward model of R1's last stage [R1 §2.3.4]: pairs of answers, training,
and its use as a reward."""
