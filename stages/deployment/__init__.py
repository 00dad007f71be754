"""What is needed to ship a result: which model, whether it keeps its limits, and the package with all that a user of it needs."""
