"""`make chaos`: every process of the system is killed at random moments under load, and every answer is checked.

versions -> processes + traffic + jobs, which kills interrupts -> oracle judges the answers, aftermath what Redis then holds.
"""
