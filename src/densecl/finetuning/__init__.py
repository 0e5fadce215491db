"""Fine-tuning that is kept: `finetune` trains a detector or a segmenter on labels, `predict` applies it."""
