"""What a person runs: the command line, the graph, settings and published results."""
