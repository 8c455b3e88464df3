"""holdfast: fine-tune a language model and keep its character."""
