"""One operator at a time: its shapes in the networks, its inputs, its plain PyTorch equivalent."""
