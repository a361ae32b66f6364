"""Layer-wise relevance propagation: the rules, and the explanation of the classifier by them."""
