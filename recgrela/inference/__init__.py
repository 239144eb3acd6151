"""Use of a trained model: recommendations, scores and vectors."""
