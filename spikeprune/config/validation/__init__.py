"""What the values of a configuration may be, alone and together; `load.load` reports every problem found here.

A rule belongs here when it can be decided before any data or checkpoint is read.
"""
