"""What can say what an answer is worth: a model behind an endpoint, a model in this process."""
