"""What the data say: statistics of pre-activations, and distributions fitted to them.

It needs SciPy, and Matplotlib for pictures; MMDetection installs both.
"""
