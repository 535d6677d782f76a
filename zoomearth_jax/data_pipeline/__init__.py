"""Images, boxes, prompts, questions and rows. Knows nothing of the model."""
