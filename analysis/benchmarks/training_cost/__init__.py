"""What a training step costs, optimizer by optimizer: its time beside AdamW's, and memory."""
