"""What the Trainer needs around the engine: replayed micro-batches, a callback, averages for logs, model cards."""
