"""What fine-tuning under each objective does to a chat model, on one loop."""
