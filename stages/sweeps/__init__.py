"""Jobs of a sweep: copies of the project, their results, and the comparison of these."""
