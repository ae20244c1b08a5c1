"""What a data set's bytes mean: which ranges of which objects are a sample, and what it is made of."""
