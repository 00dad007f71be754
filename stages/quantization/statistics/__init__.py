"""What is collected of the calibration samples, how, and how it is stored and reduced."""
