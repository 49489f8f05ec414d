"""Other people's systems, set up the way they recommend, to measure zcluster against."""
