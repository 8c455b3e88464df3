"""One run: data and model of a recipe, training, evaluation, model card."""
